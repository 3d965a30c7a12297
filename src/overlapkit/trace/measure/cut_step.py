"""Whether the recording ends inside the last step."""

from __future__ import annotations

import itertools

import numpy as np

from overlapkit.trace.intervals import Ints
from overlapkit.trace.measure.repetition import LENGTH, busiest_stream
from overlapkit.trace.read.device_work import Work

SHORTER = 0.95
"""Share of the other steps' kernels that a step has at most, if it is cut."""

SAME = 0.95
"""Share of a cut step's kernels that the step before it begins with."""

HARDLY = 0.1
"""Share of the other steps' kernels below which a step is none, whatever its kernels are: what
follows the training loop, up to the end of the recording."""


def ends_in_step(work: Work) -> bool:
    """Whether the last step lacks kernels that all other steps have.

    A step that is cut begins as the one before it. A step that only does less than others, as one
    without an optimizer where gradients are accumulated, is not cut where others do as little.
    Of a file that is known to end in the middle, steps of a few kernels are compared too.

    Args:
        work: the work of a device, with its steps.
    """
    *others, last = _kernels(work) or [np.zeros(0, np.int64)]
    least = min(map(len, others), default=0)
    if least < (1 if work.truncated else LENGTH) or len(last) > SHORTER * least:
        return False
    same = int((last == others[-1][: len(last)]).sum())
    return same >= SAME * len(last) or len(last) < HARDLY * least


def _kernels(work: Work) -> list[Ints]:
    """For each step the names of the kernels on the busiest stream, in order."""
    chosen = busiest_stream(work)
    starts = np.asarray([step.start for step in work.steps], np.int64)
    bounds = [*np.searchsorted(work.start[chosen], starts).tolist(), len(chosen)]
    names = work.name[chosen].astype(np.int64)
    return [names[first:last] for first, last in itertools.pairwise(bounds)]
