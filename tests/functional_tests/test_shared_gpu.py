"""Collectives through memory: two ranks, gloo, and streams that do nothing where there is no GPU.

What is held here is what does not depend on a GPU: which collectives are made, in which order, that
they are not captured by those that the trainer captures at the same time, and their results.
`tests/gpu` holds the rest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as multiprocessing  # noqa: E402

pytestmark = pytest.mark.functional

RANKS = 2
ROUNDS = 20
SIZE = 1000


def _without_a_gpu() -> None:
    from overlapkit.lab.rank import cuda_stand_in, shared_gpu

    cuda_stand_in.stand_in_for_cuda()
    torch.cuda.set_device = lambda device: None
    torch.cuda.Event = lambda *args, **kwargs: cuda_stand_in._NoStream()
    shared_gpu._pinned = torch.empty_like


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    if not torch.cuda.is_available():
        _without_a_gpu()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    from megatron.core.distributed import param_and_grad_buffer

    from overlapkit.lab.rank.shared_gpu import exchange_through_memory

    exchange_through_memory()
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


def test_collectives_through_memory_give_what_gloo_gives(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=RANKS)
