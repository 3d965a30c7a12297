"""Collectives between ranks that share a GPU, which NCCL does not support.

NCCL accepts one rank for each GPU in a communicator ("Duplicate GPU detected"). gloo does not
support coalesced collectives of CUDA tensors, which Megatron-Core's DistributedDataParallel uses.
So the data goes through pinned memory: a copy to the host on a separate stream, gloo on the host, a
copy to the GPU on another stream. All of this overlaps with the GPU's compute, and the current
stream waits for it at `wait()`, as it would for NCCL.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d


class _Courier:
    """Runs collectives one after the other, in the order in which they were requested."""

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        self._down, self._up = torch.cuda.Stream(), torch.cuda.Stream()
        # One thread: all ranks must call gloo in the same order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="courier")
        self.capturing = threading.Lock()

    def send(self, collective: Any, group: Any) -> Future[Any]:
        """Start a captured collective; its result is the event after which the target is filled."""
        source = collective.tensor
        self._down.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._down):
            host = _pinned(source)
            host.copy_(source, non_blocking=True)
            there = torch.cuda.Event()
            there.record(self._down)
        return self._thread.submit(self._carry, collective, group, host, there)

    def _carry(self, collective: Any, group: Any, host: torch.Tensor, there: Any) -> Any:
        torch.cuda.set_device(self._device)
        target = collective.tensor if collective.dst_tensor is None else collective.dst_tensor
        result = host if collective.dst_tensor is None else _pinned(target)
        there.synchronize()
        # While the trainer captures, collectives of this thread would also be captured.
        with self.capturing:
            if collective.dst_tensor is None:
                work = dist.all_reduce(host, collective.redop, group, async_op=True)
            elif collective.redop is not None:
                work = dist.reduce_scatter_tensor(
                    result, host, collective.redop, group, async_op=True
                )
            else:
                work = dist.all_gather_into_tensor(result, host, group, async_op=True)
        work.wait()
        with torch.cuda.stream(self._up):
            target.copy_(result, non_blocking=True)
            back = torch.cuda.Event()
            back.record(self._up)
        return back


class _Flight:
    """Running collectives; replaces torch's handle of coalesced ones."""

    def __init__(self) -> None:
        self._collectives: list[Future[Any]] = []

    def add(self, collective: Future[Any]) -> None:
        self._collectives.append(collective)

    def wait(self) -> None:
        """Make the current stream wait until every target is filled."""
        for collective in self._collectives:
            torch.cuda.current_stream().wait_event(collective.result())
        self._collectives.clear()


def _pinned(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)


def exchange_through_memory() -> None:
    """Make Megatron-Core's DistributedDataParallel use this. Call it once, after gloo is set up."""
    from megatron.core.distributed import param_and_grad_buffer

    courier = _Courier()

    @contextmanager
    def coalescing(
        group: Any = None, device: Any = None, async_ops: bool = False
    ) -> Iterator[_Flight]:
        """Like torch's context manager: the collectives inside start when it ends."""
        group = group or dist.group.WORLD
        flight = _Flight()
        with courier.capturing:
            captured = distributed_c10d._world.pg_coalesce_state.setdefault(group, [])
            try:
                yield flight
            finally:
                del distributed_c10d._world.pg_coalesce_state[group]
        for collective in captured:
            flight.add(courier.send(collective, group))
        if not async_ops:
            flight.wait()

    param_and_grad_buffer._coalescing_manager = coalescing
