"""Sets of time as sorted, disjoint intervals in integer nanoseconds, and their algebra.

Every reported time is the measure of such a set, never a sum of durations: two kernels that run at
the same time count once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """A set of time: half-open intervals, sorted, disjoint, not touching, none empty."""

    start: Ints
    end: Ints

    def __len__(self) -> int:
        return len(self.start)

    @property
    def total(self) -> int:
        """Its measure in nanoseconds."""
        return int((self.end - self.start).sum())

    def upto(self, when: Ints) -> Ints:
        """The measure of the part before each time in `when`."""
        if not len(self.start):
            return np.zeros(len(when), dtype=np.int64)
        before = np.concatenate(([0], np.cumsum(self.end - self.start)))
        index = np.searchsorted(self.start, when, side="right")
        # The interval that began last can extend beyond that time.
        last_end = self.end[np.maximum(index - 1, 0)]
        beyond = np.where(index > 0, np.maximum(last_end - when, 0), 0)
        return np.asarray(before[index] - beyond, dtype=np.int64)

    def within(self, start: Ints, end: Ints) -> Ints:
        """The measure inside each window [start, end)."""
        return self.upto(end) - self.upto(start)


def _spans(start: Ints, end: Ints) -> Spans:
    return Spans(np.asarray(start, dtype=np.int64), np.asarray(end, dtype=np.int64))


NOTHING = _spans(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def union(start: Ints, end: Ints) -> Spans:
    """The set that these intervals cover; they can overlap, be unsorted or be empty."""
    keep = end > start
    start, end = start[keep], end[keep]
    if not len(start):
        return NOTHING
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    opens = np.concatenate(([True], start[1:] > reach[:-1]))
    closes = np.concatenate((opens[1:], [True]))
    return _spans(start[opens], reach[closes])


def both(a: Spans, b: Spans) -> Spans:
    """The intersection: the time in `a` and in `b`."""
    if not len(a) or not len(b):
        return NOTHING
    edges = np.sort(np.concatenate((a.start, a.end, b.start, b.end)))
    left, right = edges[:-1], edges[1:]
    keep = _covers(a, left) & _covers(b, left)
    return union(left[keep], right[keep])


def minus(a: Spans, b: Spans) -> Spans:
    """The difference: the time in `a` and not in `b`."""
    if not len(a) or not len(b):
        return a
    edges = np.sort(np.concatenate((a.start, a.end, b.start, b.end)))
    left, right = edges[:-1], edges[1:]
    keep = _covers(a, left) & ~_covers(b, left)
    return union(left[keep], right[keep])


def either(*sets: Spans) -> Spans:
    """The union: the time in any of the sets."""
    return union(np.concatenate([s.start for s in sets]), np.concatenate([s.end for s in sets]))


def _covers(a: Spans, when: Ints) -> NDArray[np.bool_]:
    """Whether each time is in `a`."""
    index = np.searchsorted(a.start, when, side="right") - 1
    return np.asarray((index >= 0) & (when < a.end[np.maximum(index, 0)]))


def distinct(values: Ints) -> tuple[Ints, NDArray[np.intp]]:
    """The distinct values, sorted, and for each value its index among them.

    numpy.unique does the same, but imports numpy.ma, which takes a tenth of a short run.
    """
    if not len(values):
        return values, np.zeros(0, dtype=np.intp)
    order = np.argsort(values, kind="stable")
    opens = np.diff(values[order], prepend=values[order[0]]) != 0
    index = np.empty(len(values), dtype=np.intp)
    index[order] = np.cumsum(opens)
    opens[0] = True
    return values[order][opens], index


def shares(start: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
    """Cut the union of intervals into pieces, each owned by one interval.

    Where several intervals overlap, the one that began first is the owner. The pieces are disjoint
    and add up to the union.

    Returns:
        Starts and ends of the pieces, sorted, and the index of the owner of each piece.
    """
    order = np.argsort(start, kind="stable")
    begin, finish = start[order], end[order]
    if not len(begin):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty
    reach = np.maximum.accumulate(finish)
    begin = np.concatenate((begin[:1], np.maximum(begin[1:], reach[:-1])))
    keep = finish > begin
    return begin[keep], finish[keep], np.asarray(order[keep], dtype=np.int64)
