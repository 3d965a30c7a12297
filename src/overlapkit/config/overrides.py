"""Hydra-style overrides: ``model.tensor_model_parallel_size=4``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron.bridge.training.near_names import nearest
from overlapkit.config.schema import KNOB_SECTIONS, OWN_NAMES, known_keys, sections, shown
from overlapkit.config.yaml_file import MAX_DEPTH, YamlProblem, load_yaml
from overlapkit.errors import InputError

NAMED_SECTIONS = frozenset({"mixed_precision"})
"""Sections that may be a registered name instead of keys."""

BY_NAME = "_recipe"
"""The key of such a name when the section is overridden key by key."""

_SHOWN = 120
"""Characters of an override that a message shows."""

_FORM = re.compile(r"(?:\+\+?)?(?P<key>[^=\s]+)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Override:
    """One override: a section, a key in it (None for the section itself) and its value."""

    section: str
    key: str | None
    value: Any
    text: str


def is_override(argument: str) -> bool:
    """Whether a command-line argument is an override rather than a file."""
    return _FORM.fullmatch(argument) is not None or argument.startswith(("~", "+"))


def parse_override(
    text: str, in_file: dict[str, Any] | None = None, *, allow_unknown: bool = False
) -> Override:
    """The override in one argument.

    Args:
        text: ``section.key=value``; a leading ``+`` or ``++`` is accepted, as Hydra does.
        in_file: the sections of the file that is overridden; their keys are known too.
        allow_unknown: whether the section and the key may be any.

    Raises:
        InputError: it has another form, or its section or key is not known.
    """
    if text.startswith("~"):
        raise InputError(f"{text}: deleting a key is not supported; set it to null instead")
    form = _FORM.fullmatch(text)
    if form is None:
        raise InputError(f"{text}: not an override; write section.key=value")
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    section, _, key = form["key"].partition(".")
    names = form["key"].split(".")
    if not all(names) or len(names) > MAX_DEPTH:
        raise InputError(f"{text}: {shown(form['key'])} is not a key; write section.key=value")
    if not allow_unknown:
        _check_known(section, key, text, in_file or {})
    try:
        value, _ = load_yaml(form["value"])
    except YamlProblem as problem:
        raise InputError(f"{text}: the value: {problem}; quote it if it is text") from None
    if value == "None":
        raise InputError(f"{text}: None is a string here; write null")
    if form["value"].strip() == "":
        raise InputError(f"{text}: no value; write null to unset {form['key']}")
    if not key and isinstance(value, dict) and not allow_unknown:
        for inner in value:
            _check_known(section, inner, f"{section}.{inner}", in_file or {})
    return Override(section, key or None, value, text)


def _check_known(section: str, key: str, text: str, in_file: dict[str, Any]) -> None:
    name = text.partition("=")[0].lstrip("+")
    if section not in sections() | frozenset(in_file):
        homes = [f"{s}.{section}" for s in (*KNOB_SECTIONS, "train") if section in known_keys(s)]
        near = nearest(section, sections())
        meant = homes[0] if homes else (f"{near}.{key}" if key else near) if near else None
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(sorted(sections()))}"
        raise InputError(f"{name}: unknown section {section!r}; {hint}")
    if section in OWN_NAMES:
        return
    content = in_file.get(section)
    own = frozenset(map(str, content)) if isinstance(content, dict) else frozenset()
    first = key.partition(".")[0]
    if not key or first in known_keys(section) | own:
        return
    homes = [s for s in (*KNOB_SECTIONS, "train") if first in known_keys(s)]
    near = nearest(first, known_keys(section) | own)
    meant = f"{homes[0]}.{first}" if homes else f"{section}.{near}" if near else None
    hint = f"did you mean {meant}?" if meant else "no known key is similar"
    raise InputError(f"{name}: unknown key; {hint}")


def apply_overrides(data: dict[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of `data`'s sections with the overrides applied; `data` is not changed.

    Raises:
        InputError: an override is for a section that is not a mapping.
    """
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    for override in overrides:
        if override.key is None:
            result[override.section] = override.value
            continue
        content = result.get(override.section)
        if content is None:
            content = result[override.section] = {}
        if isinstance(content, str) and override.section in NAMED_SECTIONS:
            content = result[override.section] = {BY_NAME: content}
        if not isinstance(content, dict):
            raise InputError(
                f"{override.text}: {override.section} is {shown(content)} in the file, not a "
                "section with keys"
            )
        *parents, last = override.key.split(".")
        for depth, name in enumerate(parents, start=1):
            child = content.get(name)
            if child is not None and not isinstance(child, dict):
                above = ".".join((override.section, *parents[:depth]))
                raise InputError(
                    f"{override.text}: {above} is {shown(child)} in the file, not a mapping; "
                    f"override the whole of {above}"
                )
            content[name] = dict(child or {})
            content = content[name]
        content[last] = override.value
    return result
