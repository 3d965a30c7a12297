"""Turns columns as they were read into device work that can be measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Ints, distinct
from overlapkit.trace.read.device_work import Source, Work
from overlapkit.trace.read.recorded import Call, WorkColumns
from overlapkit.trace.read.stated import NOTHING_STATED, Stated
from overlapkit.trace.read.timestamp_columns import column_ns, whole_ns, whole_numbers
from overlapkit.trace.read.timestamps import LONGEST_US

_DAY_NS = 24 * 3600 * 10**9


@dataclass(frozen=True)
class Recording:
    """What the devices in one file share.

    Attributes:
        path, source, names, calls: as in `Work`.
        problems: what was omitted from the columns, with counts; added to.
        stated: what the user says of kernels.
    """

    path: str
    source: Source
    names: list[str]
    calls: list[Call]
    problems: Counter[str]
    stated: Stated = NOTHING_STATED


def finish_columns(columns: WorkColumns, device: int, recording: Recording) -> Work | None:
    """The columns of one device as arrays, sorted by start, without impossible events.

    Returns:
        None where no event is left.
    """
    start, length, keep = _usable(columns, recording.problems)
    if not keep.any():
        return None
    names, problems = recording.names, recording.problems
    index = np.flatnonzero(keep)
    # By end where starts are equal, so that the result does not depend on the order in the file.
    order = index[np.lexsort((length[index], start[index]))]
    coded = np.asarray(columns.name, dtype=np.int64)
    stream, correlation = whole_numbers(columns.stream), whole_numbers(columns.correlation)
    again = _recorded_again(order, [start, length, coded, stream, correlation])
    _count(problems, "device event recorded twice, counted once", again)
    order = order[~again]
    coded = coded[order]
    nameless = np.asarray([not name for name in names], dtype=np.bool_)[coded >> 1]
    _count(problems, "device event without a name, counted as compute", nameless & (coded & 1 == 0))
    return Work(
        path=recording.path,
        source=recording.source,
        device=device,
        start=start[order],
        end=(start + length)[order],
        name=(coded >> 1).astype(np.int32),
        kind=_kinds(coded, names, recording.stated),
        stream=stream[order],
        correlation=correlation[order],
        grid=np.asarray(columns.grid, dtype=np.int32)[order],
        call=np.asarray(columns.call, dtype=np.int32)[order],
        names=names,
        calls=recording.calls,
    )


def _usable(columns: WorkColumns, problems: Counter[str]) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Starts and lengths in nanoseconds, and which events a device can have run."""
    read = whole_ns if columns.nanoseconds else column_ns
    start, has_start = read(columns.ts)
    length, has_length = read(columns.dur)
    keep = has_start & has_length
    _count(problems, "device event without a usable time or duration, omitted", ~keep)
    negative = keep & (length < 0)
    _count(problems, "device event with a negative duration, omitted", negative)
    keep &= ~negative
    endless = keep & (length > LONGEST_US * 1000)
    _count(problems, "device event longer than an hour, omitted", endless)
    keep &= ~endless
    if keep.any():
        # One of them, also where their number is even: it stays, however far apart they are.
        middle = int(np.quantile(start[keep], 0.5, method="lower"))
        far = keep & (np.abs(start - middle) > _DAY_NS)
        _count(problems, "device event a day or more from the others, omitted", far)
        keep &= ~far
        first, last = int(start[keep].min()), int(start[keep].max())
        # Ten times as long as everything else together, and seconds long: a faulty clock.
        wrong = keep & (length > max(10 * (last - first), 10 * 10**9))
        if int(keep.sum()) > 10:
            _count(problems, "device event far longer than the trace, omitted", wrong)
            keep &= ~wrong
    return start, length, keep


def _recorded_again(order: NDArray[np.intp], columns: Sequence[Ints]) -> NDArray[np.bool_]:
    """Which of the events are exact repetitions of an earlier one.

    Args:
        order: the events, sorted by start and then by length.
        columns: what identifies an event: start, length and others, the last one its correlation
            id. Events without one (-1, 0) are never repetitions.
    """
    start, length, *_, correlation = columns
    again = np.zeros(len(order), dtype=np.bool_)
    # Hardly any two events of a device have equal start and end, and only those are compared.
    equal = (np.diff(start[order]) == 0) & (np.diff(length[order]) == 0)
    near = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    known: set[tuple[int, ...]] = set()
    for place in near.tolist():
        event = order[place]
        key = tuple(int(column[event]) for column in columns)
        again[place] = correlation[event] > 0 and key in known
        known.add(key)
    return again


def _kinds(coded: Ints, names: Sequence[str], stated: Stated) -> NDArray[np.int8]:
    """The kind of each event, from its name and whether it is listed among the copies."""
    kinds = {
        code: stated.classify(names[code >> 1], copy=bool(code & 1)).kind
        for code in distinct(coded)[0].tolist()
    }
    lookup = np.zeros(max(kinds) + 1, dtype=np.int8)
    for code, kind in kinds.items():
        lookup[code] = kind
    return lookup[coded]


def _count(problems: Counter[str], what: str, which: Any) -> None:
    number = int(which.sum())
    if number:
        problems[what] += number
