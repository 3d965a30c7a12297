"""Sentences about settings, in the language of a Megatron-LM job: flags instead of keys."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any

from megatron.bridge.training.edits import ENV, Edit
from overlapkit.config.megatron_lm.flag_edits import FlagEdit, flag_edit, flag_edits, in_flags
from overlapkit.config.megatron_lm.flags import FLAGS

_KEY = re.compile(
    r"(?P<verb>\bset )?\b(?P<key>(?:model|ddp|optimizer|train|comm_overlap|mixed_precision)\.\w+)"
    r"(?:=(?P<value>[^\s,;:()]+))?"
)
_OVERLAP = "comm_overlap."
_PRECISION = "mixed_precision."


def key_of_flag(key: str) -> str:
    """The key that a flag sets, for one of a section that Megatron-LM does not have."""
    section, _, name = key.partition(".")
    if f"{section}." not in (_OVERLAP, _PRECISION):
        return key
    known = (each for flag in FLAGS.values() for each in flag.keys)
    return next((each for each in known if each.partition(".")[2] == name), key)


def flags_for(settings: Iterable[tuple[str, Any]], version: str | None = None) -> FlagEdit:
    """Keys and values as one change of flags, as far as flags can say them."""
    edits = [Edit(key_of_flag(key), value) for key, value in settings]
    return flag_edits([edit for edit in edits if not flag_edit(edit, version).why_not], version)


def in_words_of_flags(
    text: str, version: str | None = None, passed: Container[str] | None = None
) -> str:
    """A sentence with flags for the keys in it; a key that no flag sets stays.

    Args:
        text: the sentence, with keys as ``model.name`` and ``model.name=value``.
        version: of Megatron-Core; the newest known one by default.
        passed: the flags that the job is given, so that no other is to be omitted.
    """

    def flags(found: re.Match[str]) -> str:
        key, verb = key_of_flag(found["key"]), found["verb"] or ""
        if found["value"] is None:
            name = next((name for name, flag in FLAGS.items() if key in flag.keys), None)
            return found[0] if name is None else f"{verb and 'pass '}{name}"
        edit = Edit(key, _value(found["value"]))
        return (in_flags([edit], version, passed) if not key.startswith(ENV) else "") or found[0]

    return _KEY.sub(flags, text)


def _value(text: str) -> Any:
    """A value as an override has it."""
    words = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text
