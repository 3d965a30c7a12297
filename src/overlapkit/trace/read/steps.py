"""The steps of a profile, projected onto the device."""

from __future__ import annotations

import itertools

import numpy as np

from overlapkit.trace.read.device_work import Launches, Work
from overlapkit.trace.read.recorded import StepRanges, Window

LOOSE = 0.01
"""Share of events without a known launch, or of time in two steps, that causes a warning."""


def project(
    work: Work, on_device: StepRanges | None, on_host: StepRanges, launches: Launches | None
) -> tuple[list[Window], list[str]]:
    """The steps on the device, and what was assumed.

    The profiler's ranges on the device are used if there are any. Otherwise a step is from the
    start of the first to the end of the last work that was launched inside its range on the host.
    If the launches are unknown, the ranges on the host are used.

    Args:
        work: the work of the device.
        on_device: the profiler's ranges on the device; None without any.
        on_host: the ranges on the host.
        launches: the launches on the host; None where they are unknown.
    """
    if on_device is not None and (marked := on_device.windows()):
        return marked, _overlapping(marked)
    host = on_host.windows()
    if not host:
        return [], []
    if launches is None or not len(launches.correlation):
        inside = [w for w in host if _has_work(work, w)]
        return inside, [
            "steps are ranges on the host: the trace has neither ranges on the device nor launches"
        ]
    place, known = launches.find(work.correlation)
    launched = np.where(known, launches.time[place], np.int64(-(1 << 62)))
    windows, empty = [], 0
    for window in host:
        mine = (launched >= window.start) & (launched < window.end)
        if not mine.any():
            empty += 1
            continue
        start, end = int(work.start[mine].min()), int(work.end[mine].max())
        windows.append(Window(window.name, window.number, start, end))
    notes = []
    loose = int((~known).sum())
    if windows and loose > LOOSE * len(work):
        notes.append(
            f"{loose} of {len(work)} device events have no launch in the trace: steps end with the "
            "last work whose launch is known, and can be too short"
        )
    if empty and windows:
        notes.append(f"{empty} of {len(host)} steps launched no work on the device, omitted")
    elif not windows:
        inside = [w for w in host if _has_work(work, w)]
        notes.append("steps are ranges on the host: no launch inside them connects work to a step")
        return inside, notes
    return windows, notes + _overlapping(windows)


def _overlapping(windows: list[Window]) -> list[str]:
    """A warning where the work of one step overlaps that of the next by a notable share."""
    shared = sum(max(0, a.end - b.start) for a, b in itertools.pairwise(windows))
    length = sum(w.end - w.start for w in windows)
    if shared <= LOOSE * length:
        return []
    return [
        f"steps overlap on the device by {100 * shared / length:.0f} % of their length: work in "
        "that time counts in both"
    ]


def _has_work(work: Work, window: Window) -> bool:
    return bool(((work.start < window.end) & (work.end > window.start)).any())
