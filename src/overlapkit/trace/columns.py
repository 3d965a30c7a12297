"""Columns that grow while a file is read, and the checks that they pass at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from overlapkit.trace.events import Call, Work
from overlapkit.trace.intervals import distinct
from overlapkit.trace.names import nature
from overlapkit.trace.times import LONGEST_US, column_ns, whole_ns, whole_numbers

_DAY_NS = 24 * 3600 * 10**9


@dataclass
class WorkColumns:
    """Device events of one device as they were read; `name` is 2 x its number + is a copy."""

    ts: list[Any] = field(default_factory=list)
    dur: list[Any] = field(default_factory=list)
    name: list[int] = field(default_factory=list)
    stream: list[Any] = field(default_factory=list)
    correlation: list[Any] = field(default_factory=list)
    grid: list[int] = field(default_factory=list)
    call: list[int] = field(default_factory=list)
    nanoseconds: bool = False
    """Whether times are integer nanoseconds already, not Kineto's microseconds."""

    def finish(
        self,
        path: str,
        source: str,
        device: int,
        names: list[str],
        calls: list[Call],
        troubles: Counter[str],
    ) -> Work | None:
        """The columns as arrays, sorted by start, without events that no device can have run.

        What is left out is counted in `troubles`. None where nothing is left.
        """
        read = whole_ns if self.nanoseconds else column_ns
        start, has_start = read(self.ts)
        length, has_length = read(self.dur)
        keep = has_start & has_length
        _count(troubles, "device event without a usable time or duration, left out", ~keep)
        negative = keep & (length < 0)
        _count(troubles, "device event with a negative duration, left out", negative)
        keep &= ~negative
        endless = keep & (length > LONGEST_US * 1000)
        _count(troubles, "device event longer than an hour, left out", endless)
        keep &= ~endless
        if keep.any():
            middle = int(np.median(start[keep]))
            far = keep & (np.abs(start - middle) > _DAY_NS)
            _count(troubles, "device event a day or more from the others, left out", far)
            keep &= ~far
            first, last = int(start[keep].min()), int(start[keep].max())
            # Ten times as long as all else together, and seconds long: a clock gone wrong.
            wrong = keep & (length > max(10 * (last - first), 10 * 10**9))
            if int(keep.sum()) > 10:
                _count(troubles, "device event far longer than the trace, left out", wrong)
                keep &= ~wrong
        if not keep.any():
            return None
        index = np.flatnonzero(keep)
        order = index[np.argsort(start[index], kind="stable")]
        coded = np.asarray(self.name, dtype=np.int64)[order]
        kinds = {
            code: nature(names[code >> 1], copy=bool(code & 1)).kind
            for code in distinct(coded)[0].tolist()
        }
        lookup = np.zeros(max(kinds) + 1, dtype=np.int8)
        for code, kind in kinds.items():
            lookup[code] = kind
        return Work(
            path=path,
            source=source,
            device=device,
            start=start[order],
            end=(start + length)[order],
            name=(coded >> 1).astype(np.int32),
            kind=lookup[coded],
            stream=whole_numbers(self.stream)[order],
            correlation=whole_numbers(self.correlation)[order],
            grid=np.asarray(self.grid, dtype=np.int32)[order],
            call=np.asarray(self.call, dtype=np.int32)[order],
            names=names,
            calls=calls,
        )


def _count(troubles: Counter[str], what: str, which: Any) -> None:
    number = int(which.sum())
    if number:
        troubles[what] += number


@dataclass
class HostRanges:
    """Operators and annotations of a CPU trace, in nanoseconds."""

    names: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    threads: list[tuple[Any, Any]] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    step_threads: set[tuple[Any, Any]] = field(default_factory=set)

    def add(self, name: str, category: str, thread: tuple[Any, Any], start: int, end: int) -> None:
        """One range."""
        self.names.append(name)
        self.categories.append(category)
        self.threads.append(thread)
        self.start.append(start)
        self.end.append(end)
