"""Which versions have a configuration key, and which version wrote a configuration file.

The table is made by `scripts/generate_version_tables.py` from facts of each version's source.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from megatron.bridge.training.versions import KNOWN, Package, Stack, nearest_known

_DATA = Path(__file__).with_name("data") / "fields_by_version.json"

_WRITTEN_WHOLE = ("ddp", "optimizer", "mixed_precision", "dist")
"""Sections of which Megatron-Bridge writes every field, so that a missing one shows the version."""


class Span(msgspec.Struct, frozen=True):
    """A key over consecutive known stacks.

    Attributes:
        since: index in `KNOWN` of the first stack that has it.
        kind: as in `overlapkit.config.schema.Field`; "other" where only the name is known.
        default: in that stack; None also where it is not a literal.
        until: index of the first stack without it (or with another kind or default); None: none.
        by_name: whether it is known only from files that Megatron-Bridge wrote: an older version
            may have it too, for a model that no such file was of.
    """

    since: int
    kind: str
    default: Any = None
    until: int | None = None
    by_name: bool = False

    def contains(self, stack: int) -> bool:
        """Whether the key is like this in the stack of that index."""
        return self.since <= stack and (self.until is None or stack < self.until)


class _Table(msgspec.Struct, frozen=True):
    source: str
    stacks: list[tuple[str, str]]
    sections: dict[str, dict[str, list[Span]]]


@cache
def _table() -> _Table:
    table: _Table = msgspec.json.decode(_DATA.read_bytes(), type=_Table)
    return table


def index_of(stack: Stack, section: str = "model") -> int:
    """The index in `KNOWN` of the stack whose fields a section of a run has.

    It is the nearest to the version of the package that declares the section.
    """
    package = package_of(section)
    return nearest_known(stack.version(package) or KNOWN[-1].version(package) or "", package)


def package_of(section: str) -> Package:
    """The package that declares a section's class."""
    return "core" if section in ("model", "ddp", "optimizer") else "bridge"


def is_lacking(section: str, key: str, stack: Stack) -> bool:
    """Whether a stack has no such key, and another known one has it."""
    history = spans(section, key)
    index = index_of(stack, section)
    return (
        bool(history)
        and not any(span.by_name for span in history)
        and not any(span.contains(index) for span in history)
    )


def spans(section: str, key: str) -> list[Span]:
    """The history of a key; empty where no version that is known here has it."""
    return histories(section).get(key, [])


def histories(section: str) -> dict[str, list[Span]]:
    """The history of every key of a section."""
    return _table().sections.get(section, {})


def span_in(section: str, key: str, stack: int) -> Span | None:
    """What a key is in the stack of that index; None where it does not exist there."""
    return next((span for span in spans(section, key) if span.contains(stack)), None)


def keys_in(section: str, stack: int) -> dict[str, Span]:
    """Every key of a section in the stack of that index."""
    return {
        key: span
        for key, history in histories(section).items()
        for span in history
        if span.contains(stack)
    }


def stacks_of_dump(sections: Mapping[str, Any], *, nested: bool = False) -> tuple[Stack, ...]:
    """The stacks that may have written a file with every field, oldest first.

    These are the stacks whose classes agree best with the keys that the file has and lacks: one
    where the fields differ enough, otherwise several. None where the file has no section that
    Megatron-Bridge writes in full, as one that somebody shortened or wrote by hand.

    Args:
        sections: the file, with the model's fields in one section.
        nested: whether the file has the model's TransformerConfig as a section of its own, as
            only the newest known stack writes it.
    """
    if nested:
        return KNOWN[-1:]
    present = {
        section: set(sections[section])
        for section in (*_WRITTEN_WHOLE, "model")
        if isinstance(sections.get(section), dict)
    }
    if not any(_is_whole(section, present.get(section, set())) for section in _WRITTEN_WHOLE):
        return ()
    # The names of the sections themselves: env_vars is as new as a field can be.
    present[""] = set(sections)
    errors = [
        sum(_disagreements(section, keys, stack) for section, keys in present.items())
        for stack in range(len(KNOWN))
    ]
    return tuple(stack for stack, wrong in zip(KNOWN, errors, strict=True) if wrong == min(errors))


def _is_whole(section: str, present: set[str]) -> bool:
    """Whether a section has most of the fields that some stack would have written."""
    return any(
        2 * len(present & fields.keys()) > len(fields)
        for fields in (keys_in(section, stack) for stack in range(len(KNOWN)))
    )


def _disagreements(section: str, present: set[str], stack: int) -> int:
    """Keys that the stack does not know, and keys of its own that are missing."""
    wrong = 0
    whole = _is_whole(section, present)
    for key, history in histories(section).items():
        exists = any(span.contains(stack) for span in history)
        if key in present:
            wrong += not exists
        elif section in _WRITTEN_WHOLE and whole:
            wrong += exists
    return wrong
