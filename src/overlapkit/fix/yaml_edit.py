"""Keys set and removed in a YAML text, where they stand: the rest stays as it is, byte for byte.

PyYAML gives the place of every key and value. A change replaces the characters of the value, adds a
line, or takes lines away. The text is then read again: only the keys that were to change may have
changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import yaml

from megatron.bridge.training.edits import Removed
from overlapkit.config.emit.yaml_text import flow
from overlapkit.config.yaml_file import YamlProblem, load_yaml
from overlapkit.fix.splice import (
    CannotEdit,
    Splice,
    indentation,
    line_break,
    line_end,
    line_start,
    next_line,
    spliced,
)

Path = tuple[str, ...]
"""Names of keys, from the outermost."""

_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
_ALIAS = re.compile(r"\*[^\s,\[\]{}]+")
_COLON = re.compile(r"\s*:")
_BOOLS = {
    "true": ("true", "false"),
    "True": ("True", "False"),
    "TRUE": ("TRUE", "FALSE"),
    "yes": ("yes", "no"),
    "Yes": ("Yes", "No"),
    "YES": ("YES", "NO"),
    "on": ("on", "off"),
    "On": ("On", "Off"),
    "ON": ("ON", "OFF"),
}
"""By how a file writes true: how it writes true and false."""
_SPELT = {word: pair for pair in _BOOLS.values() for word in pair}


def edit_yaml(text: str, path: Path, value: Any) -> str:
    """A YAML text in which one key has another value, or is removed.

    Args:
        text: one mapping.
        path: the key; its sections are added where they are missing.
        value: the new value, or `REMOVED`.

    Raises:
        CannotEdit: the key cannot be changed without changing another.
    """
    try:
        before, _ = load_yaml(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (YamlProblem, yaml.YAMLError) as problem:
        raise CannotEdit(f"it cannot be read: {problem}") from None
    wanted = _with(before if before is not None else {}, path, value)
    if same(before, wanted):
        return text
    try:
        made = _Edit(text, root).made(path, value)
    except RecursionError:
        raise CannotEdit("it nests too deeply") from None
    after = spliced(text, made)
    try:
        data, _ = load_yaml(after)
    except YamlProblem:
        data = None
    if not same(data if data is not None else {}, wanted if wanted is not None else {}):
        raise CannotEdit(_why_not(text, root, path))
    return after


def key_paths(text: str) -> dict[tuple[int, int], Path]:
    """The path of every key by its line and column, both from 1."""
    found: dict[tuple[int, int], Path] = {}
    todo: list[tuple[yaml.Node | None, Path]] = [(yaml.compose(text, Loader=yaml.SafeLoader), ())]
    seen = set()
    while todo:
        node, above = todo.pop()
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))
        for key, value in node.value:
            path = (*above, str(key.value))
            found[key.start_mark.line + 1, key.start_mark.column + 1] = path
            todo.append((value, path))
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values from YAML are the same: true is not 1, and 1 is not 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _with(data: Any, path: Path, value: Any) -> Any:
    """A copy of data with one key changed; what aliases share is copied for each."""
    if not path:
        return value
    name, *rest = path
    if data is not None and not isinstance(data, dict):
        raise CannotEdit(f"what contains {name} is no section with keys")
    if isinstance(value, Removed) and name not in (data or {}):
        return data
    result = dict(data or {})
    if rest:
        result[name] = _with(result.get(name), tuple(rest), value)
    elif isinstance(value, Removed):
        del result[name]
    else:
        result[name] = value
    return result


@dataclass(frozen=True)
class _Edit:
    """The splices of one change."""

    text: str
    root: yaml.Node | None

    def made(self, path: Path, value: Any) -> list[Splice]:
        node = self.root
        if not isinstance(node, yaml.MappingNode):
            raise CannotEdit("the file has no sections")
        for depth, name in enumerate(path):
            rest = path[depth + 1 :]
            pair = next(((k, v) for k, v in node.value if k.value == name), None)
            if pair is None:
                if isinstance(value, Removed):
                    raise CannotEdit(f"{'.'.join(path)} comes from a merge (<<)")
                return self.added(node, path[depth:], value)
            key, content = pair
            if not rest:
                if not isinstance(value, Removed):
                    return self.replaced(key, content, value)
                if len(node.value) == 1 and depth:
                    return self.made(path[:-1], {})
                return self.removed(node, pair)
            if self.alias(key, content):
                return self.beside_alias(key, content, rest, value)
            if isinstance(content, yaml.ScalarNode) and content.tag.endswith(":null"):
                return self.filled(key, content, rest, value)
            if not isinstance(content, yaml.MappingNode):
                raise CannotEdit(
                    f"{'.'.join(path[: depth + 1])} is the single value {content.value!r:.40}, "
                    "not a section with keys"
                )
            node = content
        raise AssertionError(path)

    # ------------------------------------------------------------------------------- places

    def colon(self, key: yaml.Node) -> int:
        """Where the colon of a key ends."""
        found = _COLON.match(self.text, key.end_mark.index)
        if found is None:
            raise CannotEdit(f"the key {key.value} has an unusual form")
        return found.end()

    def alias(self, key: yaml.Node, value: yaml.Node) -> re.Match[str] | None:
        """The alias that is a key's value, if it is one: its node is before the key then."""
        if value.start_mark.index >= key.start_mark.index:
            return None
        at = self.colon(key)
        blanks = re.compile(r"\s*").match(self.text, at)
        return _ALIAS.match(self.text, blanks.end() if blanks else at)

    def end(self, key: yaml.Node, value: yaml.Node) -> int:
        """Where a key's value ends, without comments and line breaks after it."""
        alias = self.alias(key, value)
        if alias is not None:
            return alias.end()
        if isinstance(value, yaml.CollectionNode) and not value.flow_style and value.value:
            last = value.value[-1]
            if isinstance(last, tuple):
                return self.end(*last)
            if last.start_mark.index < value.start_mark.index:
                raise CannotEdit("a list in it ends with an alias")
            return self.end_of_item(last)
        return self.end_of_item(value, at_least=self.colon(key))

    def end_of_item(self, value: yaml.Node, at_least: int = 0) -> int:
        if isinstance(value, yaml.CollectionNode) and not value.flow_style and value.value:
            last = value.value[-1]
            return self.end(*last) if isinstance(last, tuple) else self.end_of_item(last)
        start, end = value.start_mark.index, value.end_mark.index
        return max(at_least, start + len(self.text[start:end].rstrip()))

    # ------------------------------------------------------------------------------ changes

    def replaced(self, key: yaml.Node, value: yaml.Node, new: Any) -> list[Splice]:
        alias = self.alias(key, value)
        if alias is not None:
            return [Splice(*alias.span(), flow(new))]
        colon, end = self.colon(key), self.end(key, value)
        start = value.start_mark.index
        properties = _PROPERTIES.match(self.text, start)
        inside = properties.end() if properties is not None else start
        on_key_line = "\n" not in self.text[colon:inside]
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        above = self.text[line_start(self.text, key.start_mark.index) : key.start_mark.index]
        if isinstance(new, dict) and new and isinstance(value, yaml.ScalarNode) and not above:
            lines = (self.lines(self.step(), (name,), each) for name, each in new.items())
            return self.section(key, value, chain.from_iterable(lines))
        if end <= colon:
            # An empty value, which is null.
            return [Splice(colon, colon, f" {flow(new)}")]
        if block or not on_key_line:
            if "&" in self.text[start:inside]:
                raise CannotEdit(f"the value of {key.value} has an anchor")
            # A comment on the key's line stays there.
            behind = line_end(self.text, colon)
            return [Splice(colon, colon, f" {flow(new)}"), Splice(behind, end, "")]
        return [Splice(inside, end, self.as_written(value, new))]

    def as_written(self, value: yaml.Node, new: Any) -> str:
        """A value in the style of the one that it replaces."""
        old = value.value if isinstance(value, yaml.ScalarNode) else ""
        style = value.style if isinstance(value, yaml.ScalarNode) else None
        if isinstance(new, str) and style in ("'", '"') and new.isprintable():
            plain = not set(new) & set("'\"\\")
            return f"{style}{new}{style}" if plain else flow(new)
        if isinstance(new, bool) and old in _SPELT:
            return _SPELT[old][not new]
        return flow(new)

    def beside_alias(self, key: yaml.Node, value: yaml.Node, rest: Path, new: Any) -> list[Splice]:
        alias = self.alias(key, value)
        assert alias is not None
        if not isinstance(value, yaml.MappingNode) or isinstance(new, Removed):
            raise CannotEdit(f"{key.value} is the alias {alias[0]}")
        inner = _pair(rest, new)
        return [Splice(*alias.span(), f"{{<<: {alias[0]}, {inner}}}")]

    def filled(self, key: yaml.Node, value: yaml.Node, rest: Path, new: Any) -> list[Splice]:
        """A section that is null gets its first key."""
        above = self.text[line_start(self.text, key.start_mark.index) : key.start_mark.index]
        colon, end = self.colon(key), self.end(key, value)
        if above.strip():
            start = value.start_mark.index if end > colon else colon
            blank = "" if end > colon else " "
            return [Splice(start, max(start, end), f"{blank}{{{_pair(rest, new)}}}")]
        return self.section(key, value, self.lines(above + self.step(), rest, new))

    def section(self, key: yaml.Node, value: yaml.Node, lines: Iterable[str]) -> list[Splice]:
        """Lines of a section in the place of a single value; a comment behind that stays."""
        colon, end = self.colon(key), self.end(key, value)
        start = value.start_mark.index if end > colon else colon
        if "&" in self.text[colon:end] or "\n" in self.text[colon:end]:
            raise CannotEdit(f"the value of {key.value} has an unusual form")
        after = line_end(self.text, end)
        blank = len(self.text[colon:start]) if not self.text[end:after].strip() else 0
        return [
            Splice(start - blank, max(start, end), ""),
            Splice(after, after, "".join(f"{line_break(self.text)}{line}" for line in lines)),
        ]

    def added(self, node: yaml.MappingNode, path: Path, value: Any) -> list[Splice]:
        """A key that a mapping does not have, after its last one."""
        if node.flow_style:
            inner = _pair(path, value)
            if not node.value:
                at = self.text.index("{", node.start_mark.index) + 1
                return [Splice(at, at, inner)]
            at = self.end(*node.value[-1])
            return [Splice(at, at, f", {inner}")]
        first, _ = node.value[0]
        lines = self.lines(indentation(self.text, first.start_mark.index), path, value)
        end = self.end(*node.value[-1])
        new = "".join(f"{line}{line_break(self.text)}" for line in lines)
        whole = node is self.root and not re.search(r"^\.\.\.", self.text, re.MULTILINE)
        at = len(self.text) if whole else next_line(self.text, max(0, end - 1))
        if at and self.text[at - 1] != "\n":
            # The file has no line break at its end, and gets none.
            new = line_break(self.text) + new.removesuffix(line_break(self.text))
        return [Splice(at, at, new)]

    def removed(self, node: yaml.MappingNode, pair: tuple[yaml.Node, yaml.Node]) -> list[Splice]:
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        at = next(n for n, each in enumerate(pairs) if each[0] is pair[0])
        start, end = pair[0].start_mark.index, self.end(*pair)
        if not node.flow_style:
            if self.text[line_start(self.text, start) : start].strip():
                raise CannotEdit(f"{pair[0].value} does not begin its line")
            return [Splice(line_start(self.text, start), next_line(self.text, end), "")]
        if at + 1 < len(pairs):
            return [Splice(start, pairs[at + 1][0].start_mark.index, "")]
        return [Splice(self.end(*pairs[at - 1]) if at else start, end, "")]

    def lines(self, indent: str, path: Path, value: Any) -> Iterator[str]:
        """The lines of a new key in block style."""
        for depth, name in enumerate(path):
            last = depth == len(path) - 1
            inner = f" {flow(value)}" if last else ""
            yield f"{indent}{self.step() * depth}{flow(name)}:{inner}"

    def step(self) -> str:
        """The indentation of the file's sections."""
        if isinstance(self.root, yaml.MappingNode) and self.root.value:
            outside: int = self.root.value[0][0].start_mark.column
            for _, value in self.root.value:
                if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
                    inside: int = value.value[0][0].start_mark.column
                    if inside > outside:
                        return " " * (inside - outside)
        return "  "


def _pair(path: Path, value: Any) -> str:
    """A key and its value in flow style, without the braces around them."""
    name, *rest = path
    return (
        f"{flow(name)}: {{{_pair(tuple(rest), value)}}}" if rest else f"{flow(name)}: {flow(value)}"
    )


def _why_not(text: str, root: yaml.Node | None, path: Path) -> str:
    """Why a change of one key would have changed others."""
    node, anchors = root, list[str]()
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((v for k, v in pairs if k.value == name), None)
        if node is not None and text[node.start_mark.index : node.start_mark.index + 1] == "&":
            anchors.append(text[node.start_mark.index :].split(maxsplit=1)[0])
    if anchors:
        return f"it is below the anchor {anchors[-1]}, which other keys use"
    return "the file cannot be changed there without changing another key"
