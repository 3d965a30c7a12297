"""Times the link and the machine by themselves: collectives alone, and compute beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

_TIMES = 3
_WIDTH = 256


def over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of each value over all ranks."""
    worst = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    result: list[float] = worst.tolist()
    return result


def pair_seconds(payload: int) -> float:
    """Seconds of a reduce-scatter and an all-gather of `payload` bytes over all ranks, fp32.

    The median of three, on the slowest rank; a payload of less than one element per rank is
    made that.
    """
    whole, part = _buffers(payload)
    seconds = []
    for _ in range(1 + _TIMES):
        dist.barrier()
        start = time.perf_counter()
        dist.reduce_scatter_tensor(part, whole)
        dist.all_gather_into_tensor(whole, part)
        seconds.append(over_ranks([time.perf_counter() - start])[0])
    # The first one connects.
    return statistics.median(seconds[1:])


def slowed(payload: int, at_most: float) -> float:
    """By how much more time a matrix product takes while a reduction runs beside it, as a share.

    Args:
        payload: of the reduction, in bytes.
        at_most: seconds of multiplying that are enough.
    """
    whole, part = _buffers(payload)
    a, b = torch.randn(2 * _WIDTH, _WIDTH), torch.randn(_WIDTH, _WIDTH)

    def products(seconds: float, work: dist.Work | None) -> float:
        """Seconds of one product, over as many as fit; stops when `work` is over."""
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds and not (work and work.is_completed()):
            torch.mm(a, b)
            count += 1
        return (time.perf_counter() - start) / max(count, 1)

    products(at_most / 4, None)
    shares = []
    for _ in range(_TIMES):
        dist.barrier()
        alone = products(at_most / 2, None)
        dist.barrier()
        work = dist.reduce_scatter_tensor(part, whole, async_op=True)
        beside = products(10 * at_most, work)
        work.wait()
        shares.append(max(0.0, beside / alone - 1.0))
    return over_ranks([statistics.median(shares)])[0]


def _buffers(payload: int) -> tuple[torch.Tensor, torch.Tensor]:
    ranks = dist.get_world_size()
    part = torch.zeros(max(1, payload // (4 * ranks)))
    return torch.zeros(len(part) * ranks), part
