"""Which ranges on the host launched a kernel, or which ranges on its stream are drawn around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Ints, Spans, distinct, union
from overlapkit.trace.read.device_work import COMMUNICATION, Work
from overlapkit.trace.read.host.marks import is_waiting_for_data
from overlapkit.trace.read.recorded import MarkColumns
from overlapkit.trace.read.timestamp_columns import column_ns, whole_ns


@dataclass(frozen=True)
class Marks:
    """Ranges on the host that speak of communication or of waiting, in nanoseconds.

    Attributes:
        name: index into `names`.
        thread: the number of the thread, as in `Launches`.
        start, end: their times.
        call: index into the calls; -1 where the range says nothing of a collective.
        names: their names.
        streams: the number that stands for a device and stream, in place of a thread. The profiler
            draws ranges there, around the kernels that were launched in a range on the host.
    """

    name: NDArray[np.int32]
    thread: NDArray[np.int32]
    start: Ints
    end: Ints
    call: NDArray[np.int32]
    names: Sequence[str]
    streams: Mapping[tuple[int, int], int]

    def waiting_for_data(self) -> Spans:
        """The time in which some range waits for the next batch."""
        names, place = distinct(self.name.astype(np.int64))
        waits = np.asarray([is_waiting_for_data(self.names[n]) for n in names], dtype=np.bool_)
        chosen = waits[place] & ~np.isin(self.thread, list(self.streams.values()))
        return union(self.start[chosen], self.end[chosen])


def finish_marks(
    read: MarkColumns, names: Sequence[str], threads: Mapping[Any, int] | None = None
) -> Marks:
    """The ranges with usable times, as arrays.

    Args:
        read: the columns as they were read.
        names: the names that they number.
        threads: the threads that they number, among them pairs of a device and a stream.
    """
    column = whole_ns if read.nanoseconds else column_ns
    start, has_start = column(read.ts)
    length, has_length = column(read.dur)
    keep = has_start & has_length & (length >= 0)
    return Marks(
        np.asarray(read.name, dtype=np.int32)[keep],
        np.asarray(read.thread, dtype=np.int32)[keep],
        start[keep],
        (start + length)[keep],
        np.asarray(read.call, dtype=np.int32)[keep],
        names,
        {key: number for key, number in (threads or {}).items() if isinstance(key, tuple)},
    )


@dataclass
class Origins:
    """For chosen events the ranges that they were launched in.

    Attributes:
        of_event: index into `ranges` by event; -1 where no known range was open, or the event was
            not asked for.
        ranges: names of the open ranges, the outermost first.
        call: index into the calls by event, from the innermost range that describes a collective;
            -1 where none does.
        described: that range, by event; -1 where there is none.
    """

    of_event: NDArray[np.int32]
    ranges: list[tuple[str, ...]] = field(default_factory=list)
    call: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    described: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def origins(work: Work, marks: Marks, chosen: NDArray[np.intp]) -> Origins:
    """The ranges that were open, on the launching thread, when events were launched.

    Where that is not known, the ranges that the profiler drew around an event on its stream.

    Args:
        work: the work of the device, with its launches.
        marks: the ranges.
        chosen: the events that matter.
    """
    nothing = np.full(len(work), -1, np.int32)
    result = Origins(nothing, [], nothing.copy(), nothing.astype(np.int64))
    if not len(marks.start) or not len(chosen):
        return result
    numbers: dict[tuple[int, ...], int] = {}
    if work.launches is not None:
        place, known = work.launches.find(work.correlation[chosen])
        known &= ~_in_graphs(work, chosen)
        time, thread = work.launches.time[place[known]], work.launches.thread[place[known]]
        _open_at(marks, chosen[known], time, thread, result, numbers)
    rest = chosen[result.of_event[chosen] < 0]
    if marks.streams and len(rest):
        thread = np.asarray(
            [marks.streams.get((work.device, s), -1) for s in work.stream[rest].tolist()], np.int32
        )
        # Starts of a range and of its first kernel can differ by rounding.
        middle = (work.start[rest] + work.end[rest]) // 2
        _open_at(marks, rest, middle, thread, result, numbers)
    result.ranges = [tuple(marks.names[n] for n in stack) for stack in numbers]
    return result


def open_at(marks: Marks, time: Ints, thread: NDArray[np.int32]) -> Origins:
    """The ranges that were open at times on threads.

    Args:
        marks: the ranges.
        time: the times.
        thread: the number of the thread of each.
    """
    result = Origins(np.full(len(time), -1, np.int32), [], np.full(len(time), -1, np.int32))
    numbers: dict[tuple[int, ...], int] = {}
    _open_at(marks, np.arange(len(time)), time, thread, result, numbers)
    result.ranges = [tuple(marks.names[n] for n in stack) for stack in numbers]
    return result


def _in_graphs(work: Work, chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of the events share their launch with others, as the work of a CUDA graph does.

    What was open when a graph was launched says nothing of its kernels.
    """
    ids, place = distinct(work.correlation[chosen])
    near = np.minimum(np.searchsorted(ids, work.correlation), len(ids) - 1)
    same = ids[near] == work.correlation
    return np.asarray(np.bincount(near[same], minlength=len(ids))[place] > 1)


def _open_at(
    marks: Marks,
    events: NDArray[np.intp],
    time: Ints,
    thread: NDArray[np.int32],
    result: Origins,
    numbers: dict[tuple[int, ...], int],
) -> None:
    """Note for each event the ranges that are open at its time on its thread."""
    for number in distinct(thread.astype(np.int64))[0].tolist():
        ranges = np.flatnonzero(marks.thread == number)
        if not len(ranges):
            continue
        mine = np.flatnonzero(thread == number)
        mine = mine[np.argsort(time[mine], kind="stable")]
        ranges = ranges[np.lexsort((-marks.end[ranges], marks.start[ranges]))]
        _open_ranges(marks, ranges, time, mine, events, result, numbers)


def _open_ranges(
    marks: Marks,
    ranges: NDArray[np.intp],
    time: Ints,
    mine: NDArray[np.intp],
    chosen: NDArray[np.intp],
    result: Origins,
    numbers: dict[tuple[int, ...], int],
) -> None:
    """Go through one thread's ranges and launches in the order of time.

    Args:
        marks: all ranges.
        ranges: those of this thread, by start, the longer first.
        time: when each chosen event was launched, or what stands for it.
        mine: places in `chosen` of the events of this thread, by that time.
        chosen: the events.
        result: filled in.
        numbers: the number of each stack of names; added to.
    """
    start, end = marks.start[ranges].tolist(), marks.end[ranges].tolist()
    name, call = marks.name[ranges].tolist(), marks.call[ranges].tolist()
    stack: list[int] = []
    following = 0
    for when, event in zip(time[mine].tolist(), chosen[mine].tolist(), strict=True):
        while following < len(start) and start[following] <= when:
            while stack and end[stack[-1]] <= start[following]:
                stack.pop()
            stack.append(following)
            following += 1
        while stack and end[stack[-1]] <= when:
            stack.pop()
        # A range can end before one inside it, by rounding.
        open_now = [r for r in stack if end[r] > when]
        if open_now:
            key = tuple(name[r] for r in open_now)
            result.of_event[event] = numbers.setdefault(key, len(numbers))
            described = [r for r in open_now if call[r] >= 0]
            if described:
                result.call[event] = call[described[-1]]
                result.described[event] = ranges[described[-1]]


def add_origins(work: Work, marks: Marks) -> None:
    """Note on the work what launched its communication, and when the host waits for data.

    What the profiler recorded about a collective on the operator that launched it counts for the
    kernel too, which does not have it in every version.
    """
    found = origins(work, marks, np.flatnonzero(work.kind == COMMUNICATION))
    work.origin, work.origins = found.of_event, found.ranges
    work.call = np.where(work.call >= 0, work.call, found.call).astype(np.int32)
    _without_size(work, found.described)
    work.data_waits = marks.waiting_for_data()


def _without_size(work: Work, described: NDArray[np.int64]) -> None:
    """Take the size of a collective away from events that share it.

    A collective of copy engines is many copies, and some libraries run a second kernel: the size is
    of all of them together.
    """
    known = np.flatnonzero(described >= 0)
    _, place = distinct(described[known])
    shared = known[np.bincount(place)[place] > 1] if len(known) else known
    if not len(shared):
        return
    work.calls = list(work.calls)
    numbers: dict[int, int] = {}
    for event in shared.tolist():
        call = int(work.call[event])
        if call not in numbers:
            numbers[call] = len(work.calls)
            work.calls.append(replace(work.calls[call], elements_in=None, elements_out=None))
        work.call[event] = numbers[call]
