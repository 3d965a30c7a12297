"""Ranks that exchange data through memory: `python shared_gpu_ranks.py FOLDER`.

Two ranks over gloo make the collectives that Megatron-Core makes of buckets, and check the results.
Without a GPU, streams do nothing. torch and Megatron-Core are imported once and the ranks are
forked, as importing takes most of the time; a process that has used CUDA cannot be forked.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import param_and_grad_buffer

from overlapkit.lab.rank import cuda_stand_in, shared_gpu

RANKS = 2
ROUNDS = 20
SIZE = 1000


def without_a_gpu() -> None:
    """Let what is made for CUDA run on the CPU."""
    cuda_stand_in.stand_in_for_cuda()
    torch.cuda.set_device = lambda device: None
    torch.cuda.Event = lambda *args, **kwargs: cuda_stand_in._NoStream()
    shared_gpu._pinned = torch.empty_like


def rank_of_two(rank: int, folder: str) -> None:
    """What one rank does; fails where a result is wrong."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    if not torch.cuda.is_available():
        without_a_gpu()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared_gpu.exchange_through_memory()
    coalescing: Any = param_and_grad_buffer._coalescing_manager
    group = dist.new_group([0, 1])
    flights = []
    for number in range(ROUNDS):
        base = torch.arange(SIZE, dtype=torch.float32, device=device) + number
        summed, mine = base * (rank + 1), torch.zeros(SIZE // RANKS, device=device)
        everyone, reduced = torch.zeros(SIZE, device=device), base * (rank + 1)
        # The first half waits at once, the second leaves several under way.
        waits = number < ROUNDS // 2
        with coalescing(group, async_ops=not waits) as scatter:
            dist.reduce_scatter_tensor(mine, summed, group=group, async_op=not waits)
        with coalescing(group, async_ops=not waits) as gather:
            own = base[rank * SIZE // RANKS : (rank + 1) * SIZE // RANKS]
            dist.all_gather_into_tensor(everyone, own, group=group, async_op=not waits)
        with coalescing(None, async_ops=not waits) as reduce:
            dist.all_reduce(reduced, async_op=not waits)
        flights.append((base, mine, everyone, reduced, scatter, gather, reduce, waits))
    for base, mine, everyone, reduced, *handles, waits in flights:
        if not waits:
            for handle in handles:
                handle.wait()
        part = slice(rank * SIZE // RANKS, (rank + 1) * SIZE // RANKS)
        assert torch.equal(mine, 3 * base[part])
        assert torch.equal(everyone, base)
        assert torch.equal(reduced, 3 * base)
    dist.destroy_process_group()


def main(folder: str) -> None:
    start = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    ranks = [start.Process(target=rank_of_two, args=(rank, folder)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    main(sys.argv[1])
