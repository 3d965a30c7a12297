"""All flags of Megatron-LM's parser by name: how many words follow each, and its versions.

The table is made by `scripts/generate_flag_table.py` from facts of each version's parser.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from megatron.bridge.training.versions import KNOWN, Range, Stack

_DATA = Path(__file__).parents[1] / "data" / "megatron_lm_flags.json"


class KnownFlag(NamedTuple):
    """A flag of Megatron-LM.

    Attributes:
        words: how many follow it: a number, ``+`` for one or more, ``*`` for any.
        versions: those that have it, as far as that is known.
    """

    words: str
    versions: Range

    @property
    def is_switch(self) -> bool:
        """Whether no word follows it."""
        return self.words == "0"


class _Group(msgspec.Struct, frozen=True):
    words: str
    since: str | None
    until: str | None
    names: str


class _Table(msgspec.Struct, frozen=True):
    source: str
    flags: list[_Group]
    values: dict[str, dict[str, tuple[str | None, str | None]]]


@cache
def _table() -> _Table:
    table: _Table = msgspec.json.decode(_DATA.read_bytes(), type=_Table)
    return table


@cache
def all_flags() -> dict[str, KnownFlag]:
    """Every flag that some known version has, by its name with the dashes."""
    return {
        f"--{name}": KnownFlag(group.words, Range("core", group.since, group.until))
        for group in _table().flags
        for name in group.names.split()
    }


def versions_of(name: str) -> KnownFlag | None:
    """What is known of a flag, with dashes or underscores in its name; None where nothing is."""
    return all_flags().get(name) or all_flags().get(name.replace("_", "-"))


def versions_of_value(flag: str, word: str) -> Range | None:
    """The versions that accept a word after a flag; None where all do, or that is not known."""
    since_until = _table().values.get(flag, {}).get(word)
    return None if since_until is None else Range("core", *since_until)


def stacks_with(ranges: Iterable[Range]) -> tuple[Stack, ...]:
    """The known stacks that have all flags, oldest first; none where every stack or no stack has.

    Args:
        ranges: the versions of each flag.
    """
    ranges = list(ranges)
    fitting = tuple(s for s in KNOWN if all(r.contains(s.core or "") for r in ranges))
    return fitting if len(fitting) < len(KNOWN) else ()
