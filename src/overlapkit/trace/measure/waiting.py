"""What the device waits for while it is idle: the next batch, or the host that launches work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from overlapkit.trace.intervals import NOTHING, Spans, both, either, minus, union
from overlapkit.trace.read.device_work import Work
from overlapkit.trace.read.recorded import Window

LATENCY_NS = 50_000
"""How long after its launch a kernel that waits for nothing else begins at the latest. A launch
takes 5 to 20 microseconds; what is longer waits for other work or for other ranks."""


@dataclass(frozen=True)
class Waiting:
    """Idle time of the device by its cause; the rest waits for work on the device or is unknown.

    Attributes:
        data: while the host waits for the next batch.
        host: until the host launches the work that ends the idle time.
    """

    data: Spans = NOTHING
    host: Spans = NOTHING


def waiting(work: Work, busy: Spans) -> Waiting:
    """The idle time of a device by its cause.

    Without launches nothing is known of the host, apart from ranges that wait for data.

    Args:
        work: the work of the device.
        busy: the time of any of it.
    """
    gaps = Spans(busy.end[:-1], busy.start[1:])
    after = _after(work)
    data = both(either(gaps, after), work.data_waits)
    if work.launches is None or not len(work.launches.correlation):
        return Waiting(data)
    # Of events that begin at the same time, the first: the others would not have begun earlier.
    ends_gap = np.searchsorted(work.start, gaps.end, side="left")
    place, known = work.launches.find(work.correlation[ends_gap])
    launched = work.launches.time[place]
    late = known & (launched > gaps.start) & (launched <= gaps.end)
    until = np.where(gaps.end - launched <= LATENCY_NS, gaps.end, launched)
    host = either(union(gaps.start[late], until[late]), after)
    return Waiting(data, minus(host, data))


def data_before(work: Work, busy: Spans, windows: Sequence[Window]) -> int:
    """Nanoseconds of waiting for data before the first work of steps, outside all steps.

    Args:
        work: the work of the device.
        busy: the time of any of it.
        windows: the steps; those without a range on the host do not count.
    """
    begun = {(w.name, w.number): w.start for w in work.host_steps}
    found = [(begun.get((w.name, w.number), w.start), w.start) for w in windows]
    pairs = np.asarray([(a, b) for a, b in found if a < b], np.int64).reshape(-1, 2)
    steps = np.asarray([(w.start, w.end) for w in work.steps], np.int64).reshape(-1, 2)
    other = either(busy, union(steps[:, 0], steps[:, 1]))
    return minus(both(union(pairs[:, 0], pairs[:, 1]), work.data_waits), other).total


def of_next(work: Work, waits: Spans, windows: Sequence[Window]) -> list[int]:
    """The part of each step's waiting that is in the next step's range on the host.

    On the device a step lasts until the next one's first work, and with it what that one waits for
    before.

    Args:
        work: the work of the device; without ranges of steps on the host nothing is known.
        waits: the time of waiting.
        windows: the steps.
    """
    hosts = work.host_steps
    following = {(a.name, a.number): b.start for a, b in pairwise(hosts)}
    end = np.asarray([w.end for w in windows], np.int64)
    begin = [following.get((w.name, w.number), w.end) for w in windows]
    start = np.maximum(begin, np.asarray([w.start for w in windows], np.int64))
    return [int(ns) for ns in waits.within(np.minimum(start, end), end)]


def _after(work: Work) -> Spans:
    """The time from the end of the last work to that of the last step: nothing is launched."""
    end = work.whole.end
    last = max((step.end for step in work.steps), default=end)
    return union(np.asarray([end], np.int64), np.asarray([last], np.int64))
