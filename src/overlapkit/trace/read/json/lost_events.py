"""What unreadable text may hide: how many device events, and how long they take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlapkit.trace.read.timestamps import LONGEST_US, literal_ns

if TYPE_CHECKING:
    from overlapkit.trace.read.device_work import Work

DEVICE_EVENT = re.compile(rb'"cat"\s*:\s*"?(?:[kK]ernel|gpu_memcpy|gpu_memset|Memcpy|Memset)\b')
_DURATION = re.compile(rb'"dur"\s*:\s*"?(\d{1,15}(?:\.\d{1,9})?)')


@dataclass
class LostEvents:
    """Device events that could not be read.

    Attributes:
        count: how many there are.
        known_ns: the durations in the text of those that state one, summed.
        unknown: how many state none.
    """

    count: int = 0
    known_ns: int = 0
    unknown: int = 0

    def add(self, text: bytes, read: int = 0) -> None:
        """Count the device events in unreadable text.

        Args:
            text: the text.
            read: how many device events in it could be read. The longest are taken to be lost.
        """
        starts = [match.start() for match in DEVICE_EVENT.finditer(text)]
        lost = len(starts) - read
        if lost <= 0:
            return
        durations = [
            _duration(text, start, end)
            for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
        ]
        unknown = durations.count(None)
        self.count += lost
        self.unknown += min(lost, unknown)
        known = sorted((ns for ns in durations if ns is not None), reverse=True)
        self.known_ns += sum(known[: max(0, lost - unknown)])

    def update(self, other: LostEvents) -> None:
        """Add what another share of the same file lost."""
        self.count += other.count
        self.known_ns += other.known_ns
        self.unknown += other.unknown

    def warning(self, works: Sequence[Work]) -> str | None:
        """How much of the device time they may be, beside the work that was read."""
        if not self.count:
            return None
        plural = "s are" if self.count > 1 else " is"
        text = f"{self.count} device event{plural} unreadable and omitted: "
        read = sum(int((work.end - work.start).sum()) for work in works)
        if not self.unknown:
            return f"{text}{_share(self.known_ns, read)} of the device time, by their durations"
        longest = max(int((work.end - work.start).max()) for work in works)
        most = self.known_ns + self.unknown * longest
        return (
            f"{text}up to {_share(most, read)} of the device time, if those without a readable "
            f"duration ({self.unknown}) take no longer than the longest that was read"
        )


def _duration(text: bytes, start: int, end: int) -> int | None:
    match = _DURATION.search(text, start, end)
    ns = literal_ns(match.group(1)) if match is not None else None
    return ns if ns is not None and ns <= LONGEST_US * 1000 else None


def _share(lost_ns: int, read_ns: int) -> str:
    total = lost_ns + read_ns
    return f"{100 * lost_ns / total if total else 0.0:.2g} %"
