"""The steps of a profile, projected onto the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from overlapkit.trace.intervals import union
from overlapkit.trace.read.device_work import Launches, Work
from overlapkit.trace.read.host.engines import iterations
from overlapkit.trace.read.recorded import StepRanges, Window

LOOSE = 0.01
"""Share of events without a known launch that causes a warning."""

HELD = 0.9
"""Share of the work launched in steps, or of all work without launches, from which the profiler's
ranges on the device are steps."""

NEAR = 0.02
NEAR_NS, NEAR_AT_MOST = 200_000, 0.2
"""A step follows another without a pause where it begins so soon after it: within a share of the
longer of the two ranges, or within some nanoseconds that are not a larger share. Between its ranges
torch.profiler only turns its own state over; a schedule's waiting and an evaluation are longer."""

OF_ENGINE = 0.5
"""The same for iterations of an engine, whose scheduler runs between its ranges: a longer pause is
a wait for requests."""

Bounds = tuple[int, int]


def project(
    work: Work, on_device: StepRanges | None, on_host: StepRanges, launches: Launches | None
) -> tuple[list[Window], list[str]]:
    """The steps on the device, and what was assumed.

    A step begins with the first work that was launched in its range on the host, and ends where the
    next one begins: that is the time per step that a training loop logs. The last step, and one
    that a pause follows, ends with its range on the host or with the last work launched in it,
    whichever is later. So steps never share time.

    The profiler's ranges on the device are used instead where there are no ranges on the host, or
    no launches, and they hold most of the work: Kineto draws them only around work whose innermost
    annotation is the step, so they can be as short as one kernel. Where there is nothing else,
    steps then run from the start of one such range to that of the next. Without any, the ranges on
    the host are the steps.

    Args:
        work: the work of the device.
        on_device: the profiler's ranges on the device; None without any.
        on_host: the ranges on the host.
        launches: the launches on the host; None where they are unknown.
    """
    host = on_host.windows()
    marked = on_device.windows() if on_device is not None else []
    place, known = _launches_of(work, launches)
    if host and launches is not None and bool(known.any()):
        launched = np.where(known, launches.time[place], np.int64(-(1 << 62)))
        windows, notes = _projected(work, host, launched)
        if windows:
            loose = int((~known).sum())
            if loose > LOOSE * len(work):
                notes.append(
                    f"{loose} of {len(work)} device events have no launch in the trace: where a "
                    "step begins is known from the others"
                )
            return windows, notes
    if len(marked) > 1 and not host and _held_between(work, marked) < HELD:
        windows, notes = _from_start_to_start(work, marked)
        if windows:
            return windows, notes
    if marked and (not host or _held(work, marked) >= HELD):
        return _apart(marked, [(w.start, w.end) for w in marked]), []
    if not host:
        return [], []
    inside = [w for w in host if _has_work(work, w)]
    if launches is None or not bool(known.any()):
        why = "the trace has no launches that connect work on the device to them"
    else:
        why = "no launch inside them connects work to a step"
    return _apart(inside, [(w.start, w.end) for w in inside]), [
        f"steps are ranges on the host: {why}"
    ]


def _launches_of(work: Work, launches: Launches | None) -> tuple[np.ndarray, np.ndarray]:
    if launches is None:
        return np.zeros(len(work), np.intp), np.zeros(len(work), np.bool_)
    return launches.find(work.correlation)


def iterations_on(
    work: Work, ranges: Sequence[tuple[str, int, int]], launches: Launches | None
) -> list[Window]:
    """The iterations of an inference engine on the device; none where nothing connects them to it.

    Args:
        work: the work of the device.
        ranges: name, start and end of the engine's ranges on the host.
        launches: the launches on the host; None where they are unknown.
    """
    host = [Window(name, n, a, b) for n, (name, a, b) in enumerate(iterations(ranges))]
    place, known = _launches_of(work, launches)
    if not host or launches is None or not bool(known.any()):
        return []
    launched = np.where(known, launches.time[place], np.int64(-(1 << 62)))
    return _projected(work, host, launched, near=OF_ENGINE)[0]


def _projected(
    work: Work, host: Sequence[Window], launched: np.ndarray, near: float = NEAR
) -> tuple[list[Window], list[str]]:
    """The steps by the work that was launched in each range, and how many launched none."""
    order = np.argsort(launched, kind="stable")
    times = launched[order]
    ranges, spans = [], []
    for window in host:
        first, last = np.searchsorted(times, [window.start, window.end])
        mine = order[first:last]
        if len(mine):
            ranges.append(window)
            spans.append((int(work.start[mine].min()), int(work.end[mine].max())))
    empty = len(host) - len(ranges)
    notes = []
    if empty and ranges:
        notes.append(f"{empty} of {len(host)} steps launched no work on the device, omitted")
    return _apart(ranges, spans, near), notes


def _apart(marked: Sequence[Window], spans: Sequence[Bounds], near: float = NEAR) -> list[Window]:
    """Steps that share no time, each up to the next one that follows without a pause.

    Args:
        marked: the ranges that mark them.
        spans: from the first to the last work of each, in nanoseconds.
        near: the share of the longer of two ranges that a pause between them is shorter than.
    """
    ordered = sorted(zip(marked, spans, strict=True), key=lambda one: one[1])
    result: list[Window] = []
    for index, (step, (start, end)) in enumerate(ordered):
        end = max(end, step.end)
        if index + 1 < len(ordered):
            following, (next_start, _) = ordered[index + 1]
            if _follows(step, following, near) or end > next_start:
                end = next_start
        if end > start:
            result.append(replace(step, start=start, end=end))
    return result


def _from_start_to_start(work: Work, marked: Sequence[Window]) -> tuple[list[Window], list[str]]:
    """Steps by ranges on the device that hold only a part of each: the last one has no end."""
    windows = [
        replace(one, end=other.start)
        for one, other in itertools.pairwise(marked)
        if other.start > one.start and _are_numbered_on(one, other)
    ]
    return windows, [
        f"ranges on the device hold {100 * _held_between(work, marked):.0f} % of the work between "
        "them: a step runs from the start of one to that of the next, and the last is omitted"
    ]


def _are_numbered_on(one: Window, other: Window) -> bool:
    return one.number is None or other.number is None or other.number == one.number + 1


def _held_between(work: Work, marked: Sequence[Window]) -> float:
    """The share of the work from the first to the last of these ranges that starts inside one."""
    within = union(*(np.asarray([at], np.int64) for at in (marked[0].start, marked[-1].end)))
    length = int(within.within(work.start, work.end).sum())
    ranges = [
        np.asarray(at, np.int64) for at in zip(*((w.start, w.end) for w in marked), strict=True)
    ]
    return int(union(*ranges).within(work.start, work.end).sum()) / max(1, length)


def _follows(one: Window, other: Window, share: float) -> bool:
    """Whether a range begins where another ends."""
    longer = max(one.end - one.start, other.end - other.start)
    near = max(share * longer, min(NEAR_NS, NEAR_AT_MOST * longer))
    return other.start - one.end <= near


def _held(work: Work, marked: Sequence[Window]) -> float:
    """The share of the device's work that starts inside these ranges."""
    start = np.asarray([w.start for w in marked], dtype=np.int64)
    end = np.asarray([w.end for w in marked], dtype=np.int64)
    place = np.searchsorted(start, work.start, side="right") - 1
    inside = (place >= 0) & (work.start < end[np.maximum(place, 0)])
    length = work.end - work.start
    return float(length[inside].sum()) / max(1, int(length.sum()))


def _has_work(work: Work, window: Window) -> bool:
    return bool(((work.start < window.end) & (work.end > window.start)).any())
