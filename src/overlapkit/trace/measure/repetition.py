"""Iterations of a profile without marked steps, by a sequence of kernels that repeats.

An iteration of a training loop launches the same kernels in the same order. Some short sequences of
them occur once in each iteration (the optimizer's, the embedding's), others once in each layer. The
sequences that occur least often, at equal distances over the whole profile, give the iterations.
Microbatches repeat too: where an optimizer runs, no iteration is shorter than from one of its steps
to the next.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Ints, distinct
from overlapkit.trace.read.device_work import COMPUTE, Work
from overlapkit.trace.read.recorded import Window

LENGTH = 8
"""Kernels of a sequence that is looked for."""

LEAST = 3
"""Occurrences from which a sequence is a repetition: two could be chance."""

SUPPORT = 0.05
"""Share of an iteration's kernels that must begin such a sequence."""

SAME = 0.9
"""Share of an iteration's kernels that the next one has at the same places, from which they are the
same, although few sequences tell where they begin."""

LONGER = 1.5
"""How much longer than a repetition the distance of two optimizer steps is, if it is that of the
microbatches between them."""

_OPTIMIZER = re.compile(
    r"multi_tensor|adam|sgd|lamb|lion|muon|adagrad|rmsprop|momentum|optimizer", re.IGNORECASE
)

UNEVEN = 0.02
"""Difference between iterations in their number of kernels, as a share, up to which they are the
same work."""

CLEAR = 1.5
"""How much longer than any other the pause between iterations is, if it separates them."""


@dataclass(frozen=True)
class Repetition:
    """Iterations that were found.

    Attributes:
        windows: the whole iterations, each up to the next one, the last up to the end of the work.
        kernels: the number of kernels of one.
    """

    windows: list[Window]
    kernels: int


def repetition(work: Work) -> Repetition | None:
    """The iterations of a profile; None where no clear repetition covers it.

    The parts of an iteration at the beginning and at the end of the profile are in none.
    """
    chosen = busiest_stream(work)
    names = work.name[chosen].astype(np.int64)
    if len(names) < LEAST * LENGTH:
        return None
    optimizing = _optimizing(work.names, names)
    step = 0.0
    same: tuple[list[int], float] | None = None
    for even in _even_sequences(names, optimizing):
        count = len(even[0])
        length = (even[0][-1] - even[0][0]) / (count - 1)
        if same is not None and length < (1 - UNEVEN) * same[1]:
            break
        if count >= LEAST and length * LONGER < step:
            return None
        near = {n for p in even if optimizing[p[0]] for n in names[p[0] : p[0] + LENGTH].tolist()}
        optimizes = any(
            _OPTIMIZER.search(work.names[n]) is not None
            and _groups(np.flatnonzero(names == n), length) <= count + 1
            for n in near
        )
        step = max(step, length if optimizes else 0.0)
        if count < LEAST:
            continue
        if len(even) >= max(1, SUPPORT * length):
            return _of(work, chosen, names, min(even), round(length))
        if optimizes and _is_same(names, even[0]):
            # What occurs once more often at this distance covers more of the profile.
            same = min(even), length
    return None if same is None else _of(work, chosen, names, same[0], round(same[1]))


def _even_sequences(names: Ints, optimizing: NDArray[np.bool_]) -> Iterator[list[list[int]]]:
    """The places of sequences at equal distances, by how often they occur, the rarest first.

    What occurs twice is no repetition, but an optimizer that runs twice divides what is one.
    """
    _, place = distinct(_sequences(names))
    counts = np.bincount(place)
    # The places of each sequence, in order.
    order = np.argsort(place, kind="stable")
    first = np.concatenate(([0], np.cumsum(counts)))
    for count in sorted(set(counts[counts >= LEAST - 1].tolist())):
        numbers = np.flatnonzero(counts == count)
        if count < LEAST:
            numbers = numbers[optimizing[order[first[numbers]]]]
        found = [order[first[n] : first[n + 1]].tolist() for n in numbers.tolist()]
        even = [places for places in found if _is_even(places, len(names))]
        if even:
            yield even


def _optimizing(titles: Sequence[str], names: Ints) -> NDArray[np.bool_]:
    """Whether a kernel of an optimizer is in the sequence that begins at each place."""
    known = np.asarray([_OPTIMIZER.search(title) is not None for title in titles])
    before = np.concatenate(([0], np.cumsum(known[names])))
    return np.asarray(before[LENGTH:] > before[:-LENGTH])


def busiest_stream(work: Work) -> NDArray[np.intp]:
    """The compute kernels of the stream that has most of them."""
    compute = np.flatnonzero(work.kind == COMPUTE)
    streams, place = distinct(work.stream[compute])
    if not len(streams):
        return compute
    busiest = int(np.argmax(np.bincount(place)))
    return np.flatnonzero((work.kind == COMPUTE) & (work.stream == streams[busiest]))


def _sequences(names: Ints) -> Ints:
    """A number for the sequence of kernels that begins at each place; equal where those are."""
    count = len(names) - LENGTH + 1
    keys = np.zeros(count, np.int64)
    for offset in range(LENGTH):
        # Numbered anew after each kernel, so that different sequences never share a number.
        _, keys = distinct(keys * (int(names.max()) + 1) + names[offset : offset + count])
        keys = keys.astype(np.int64)
    return keys


def _is_even(places: list[int], kernels: int) -> bool:
    """Whether places are at equal distances that cover all kernels but for one at either end."""
    gaps = np.diff(places)
    middle = float(np.median(gaps))
    # Equal layers with one more kernel after the last one are no iterations.
    if middle < LENGTH or np.abs(gaps - middle).max() > UNEVEN * middle:
        return False
    return places[0] <= middle and kernels - places[-1] <= 1.5 * middle


def _groups(places: NDArray[np.intp], length: float) -> int:
    """How many groups places make that are far apart, for iterations of this length."""
    return 1 + int((np.diff(places) > length / 4).sum())


def _is_same(names: Ints, places: list[int]) -> bool:
    """Whether the same kernels follow from each of these places up to the next one."""
    equal = total = 0
    for one, other in itertools.pairwise(places):
        length = min(other - one, len(names) - other)
        equal += int((names[one : one + length] == names[other : other + length]).sum())
        total += length
    return equal >= SAME * total


def _of(
    work: Work, chosen: NDArray[np.intp], names: Ints, places: list[int], length: int
) -> Repetition:
    """The iterations at this distance, from the pause between them where there is a clear one."""
    tolerance = max(1.0, UNEVEN * length)
    first = _after_pause(work, chosen, places, length)
    begins = [p + first for p in places if p + first < len(chosen)]
    if begins[0] >= length - tolerance:
        before = max(0, begins[0] - length)
        if np.array_equal(names[before : before + LENGTH], names[begins[0] : begins[0] + LENGTH]):
            begins.insert(0, before)
    bounds = work.start[chosen[begins]].tolist()
    # Of kernels that are too many for it, the first begins the next iteration.
    beyond = len(chosen) - begins[-1] - length
    if abs(beyond) <= tolerance:
        next_start = int(work.start[chosen[begins[-1] + length]]) if beyond > 0 else None
        bounds.append(work.whole.end if next_start is None else next_start)
    windows = [
        Window(f"iteration {number}", number, start, end)
        for number, (start, end) in enumerate(itertools.pairwise(bounds))
    ]
    return Repetition(windows, length)


def _after_pause(work: Work, chosen: NDArray[np.intp], places: list[int], length: int) -> int:
    """How many kernels after the found sequence an iteration begins.

    The device waits longest where one iteration ends, if the host reads a result there. Without
    such a pause the first kernel of the profile begins one.
    """
    pause = np.concatenate(([0], work.start[chosen][1:] - work.end[chosen][:-1]))
    rows = np.asarray(places[:-1])[:, None] + np.arange(length)
    middle = np.median(pause[np.minimum(rows, len(pause) - 1)], axis=0)
    longest = int(np.argmax(middle))
    if middle[longest] > CLEAR * max(0, *np.delete(middle, longest).tolist()):
        return longest
    return -places[0] % length
