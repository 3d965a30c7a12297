"""Measures the link and the machine: collectives alone, and compute at the same time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

_TIMES = 3


def over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of each value over all ranks."""
    worst = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    result: list[float] = worst.tolist()
    return result


def pair_seconds(payload: int) -> float:
    """Seconds of a reduce-scatter and an all-gather of `payload` bytes over all ranks, fp32.

    The median of three, on the slowest rank. The payload is at least one element for each rank.
    """
    whole, part = _buffers(payload)
    seconds = []
    for _ in range(1 + _TIMES):
        dist.barrier()
        start = time.perf_counter()
        dist.reduce_scatter_tensor(part, whole)
        dist.all_gather_into_tensor(whole, part)
        seconds.append(over_ranks([time.perf_counter() - start])[0])
    # The first one makes the connections.
    return statistics.median(seconds[1:])


def slowed(payload: int, compute: Callable[[], None]) -> float:
    """By how much longer `compute` takes while reductions run at the same time, as a share.

    Args:
        payload: of each reduction, in bytes. Enough of them are started to outlast `compute`.
        compute: takes a fraction of a second, and does not communicate.
    """
    whole, part = _buffers(payload)
    shares = []
    for attempt in range(1 + _TIMES):
        dist.barrier()
        start = time.perf_counter()
        compute()
        alone = time.perf_counter() - start
        dist.barrier()
        # They run one after the other over one link: enough to outlast the compute on every rank.
        count = 1 + int(over_ranks([2 * alone])[0] / pair_seconds(payload))
        works = [dist.reduce_scatter_tensor(part, whole, async_op=True) for _ in range(count)]
        start = time.perf_counter()
        compute()
        beside = time.perf_counter() - start
        for work in works:
            work.wait()
        if attempt:
            shares.append(max(0.0, beside / alone - 1.0))
    return over_ranks([statistics.median(shares)])[0]


def _buffers(payload: int) -> tuple[torch.Tensor, torch.Tensor]:
    ranks = dist.get_world_size()
    part = torch.zeros(max(1, payload // (4 * ranks)))
    return torch.zeros(len(part) * ranks), part
