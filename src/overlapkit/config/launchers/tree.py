"""A launcher's nested configuration: its values, the place of each, and overrides on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from overlapkit.config.overrides import apply_overrides, is_override, parse_override
from overlapkit.config.places import Place
from overlapkit.config.schema import sections
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.input_file import is_file

Keys = tuple[str, ...]
"""The keys that lead to a value, from the top."""

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MOST_STEPS = 20
"""References that lead from one to the next at most."""


@dataclass
class Tree:
    """A nested mapping.

    Attributes:
        path: where it is from, for messages.
        data: the mapping.
        places: the place of each key.
        overridden: the keys that an override set, with its text.
        unresolved: the keys whose value OmegaConf would compute, and that are not known here.
        missing: files that it inherits from, and that are not here.
    """

    path: str
    data: dict[str, Any]
    places: dict[Keys, Place] = field(default_factory=dict)
    overridden: dict[Keys, Place] = field(default_factory=dict)
    unresolved: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def get(self, *keys: str) -> Any:
        """A value; None where it is absent, null or not known."""
        return self._resolved(keys, 0)

    def under(self, *keys: str) -> dict[str, Any]:
        """The keys and values of a mapping; empty where there is none."""
        content = _at(self.data, keys)
        names = content if isinstance(content, Mapping) else {}
        return {str(name): self.get(*keys, str(name)) for name in names}

    def place(self, *keys: str) -> Place:
        """The place of a key, or of the nearest above it that has one."""
        for end in range(len(keys), 0, -1):
            found = self.overridden.get(keys[:end]) or self.places.get(keys[:end])
            if found is not None:
                return found
        return Place(self.path)

    def _resolved(self, keys: Keys, steps: int) -> Any:
        value = _at(self.data, keys)
        if not isinstance(value, str) or "${" not in value:
            return value
        found = _REFERENCE.fullmatch(value.strip())
        target = _target(keys, found[1]) if found is not None else None
        if target is None or steps > _MOST_STEPS or _at(self.data, target) is None:
            name = ".".join(keys)
            if name not in self.unresolved:
                self.unresolved.append(name)
            return None
        return self._resolved(target, steps + 1)


def _target(keys: Keys, reference: str) -> Keys | None:
    """The keys that ``${a.b}`` leads to, or ``${.b}`` relative to the mapping that it is in."""
    up = len(reference) - len(reference.lstrip("."))
    names = tuple(name for name in reference[up:].split(".") if name)
    if not names or up > len(keys):
        return None
    return names if up == 0 else (*keys[: len(keys) - up], *names)


def _at(data: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def tree_of(document: Document) -> Tree:
    """The tree of a file."""
    return Tree(document.path, document.data, dict(document.places))


def with_overrides(
    tree: Tree, texts: Sequence[str], roots: frozenset[str]
) -> tuple[Tree, list[str]]:
    """The tree with the overrides of its own keys, and the overrides that are of other keys.

    Args:
        tree: the configuration.
        texts: ``KEY=VALUE``, for its own keys or for those of Megatron's configurations.
        roots: names at its top, also where it does not have them yet.

    Raises:
        InputError: an override is not one, or is below a value that is no mapping.
    """
    own: list[str] = []
    others: list[str] = []
    for text in texts:
        first = text.lstrip("+~").partition("=")[0].partition(".")[0]
        mine = first in roots or (first in tree.data and first not in sections())
        (own if mine else others).append(text)
    parsed = [parse_override(text, allow_unknown=True) for text in own]
    places = {
        (o.section, *(o.key.split(".") if o.key else ())): Place(None, argument=o.text)
        for o in parsed
    }
    data = apply_overrides(tree.data, parsed)
    return replace(tree, data=data, overridden={**tree.overridden, **places}), others


def with_parents(tree: Tree, depth: int = 0) -> Tree:
    """The tree on top of the files that its ``defaults`` names, where they are beside it.

    Raises:
        InputError: one of them cannot be read.
    """
    given = tree.data.get("defaults")
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    data: dict[str, Any] = {}
    places: dict[Keys, Place] = {}
    missing: list[str] = []
    for name in names if depth < _MOST_STEPS else ():
        path = Path(_folder_of(tree), str(name))
        if str(name) == "_self_":
            continue
        if not isinstance(name, str) or not is_file(str(path)):
            missing.append(str(name))
            continue
        parent = with_parents(tree_of(read_yaml(path)), depth + 1)
        data = _merged(data, parent.data)
        places |= parent.places
        missing += parent.missing
    own = {key: value for key, value in tree.data.items() if key != "defaults"}
    return replace(tree, data=_merged(data, own), places={**places, **tree.places}, missing=missing)


def _folder_of(tree: Tree) -> Path:
    """The folder that inherited files are named from: that of the file that names them."""
    place = tree.places.get(("defaults",))
    return Path(place.file if place is not None and place.file else tree.path).parent


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings, where the second wins."""
    result = dict(below)
    for key, value in above.items():
        former = result.get(key)
        if isinstance(former, Mapping) and isinstance(value, Mapping):
            value = _merged(former, value)
        result[key] = value
    return result


@dataclass
class Mapped:
    """What a launcher's configuration sets in Megatron's configurations.

    Attributes:
        values: dotted key to what the user set.
        defaults: dotted key to what the launcher sets by itself.
        where: dotted key to the place of the user's own key.
        ignored: keys of the user that the launcher does not pass on.
    """

    values: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    where: dict[str, Place] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def set(self, dotted: str, value: Any, place: Place) -> None:
        """A value that the user set."""
        self.values[dotted] = value
        self.where[dotted] = place

    def take(self, tree: Tree, keys: Keys, dotted: str) -> None:
        """The value of a key of the tree, where it has one, as that of `dotted`."""
        value = tree.get(*keys)
        if value is not None:
            self.set(dotted, value, tree.place(*keys))

    def take_all(
        self, tree: Tree, keys: Keys, section: str, names: Mapping[str, str] | None = None
    ) -> None:
        """The values of a mapping of the tree: all, or those of `names`, as those are called."""
        for name in tree.under(*keys) if names is None else names:
            called = name if names is None else names[name]
            self.take(tree, (*keys, name), f"{section}.{called}")


def own_overrides(words: Sequence[str]) -> Iterator[str]:
    """The overrides among a command's words, as Hydra takes them."""
    for word in words:
        if is_override(word) and not word.startswith(("-", "~")) and "." in word.partition("=")[0]:
            yield word
