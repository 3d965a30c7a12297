"""Collectives between ranks that share a GPU, where NCCL refuses to connect them.

NCCL takes one rank per GPU and communicator ("Duplicate GPU detected"), and gloo takes no coalesced
collectives of CUDA tensors, which are the ones that Megatron-Core's DistributedDataParallel makes.
So the bytes go through pinned memory: a copy down on a stream of its own, gloo on the host, a copy
up on another stream. All of it runs beside the GPU's compute, and what waits for it is what would
wait for NCCL: the current stream, at `wait()`.
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
    """Carries collectives one after the other, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        self._down, self._up = torch.cuda.Stream(), torch.cuda.Stream()
        # One thread: all ranks must come to gloo with the same collective.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="courier")
        self.capturing = threading.Lock()

    def send(self, collective: Any, group: Any) -> Future[Any]:
        """Start a captured collective; the result is the event after which its target is filled."""
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
        # While the trainer captures, this thread's collectives would be captured too.
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
    """Collectives under way; takes the place of torch's handle of coalesced ones."""

    def __init__(self) -> None:
        self._collectives: list[Future[Any]] = []

    def add(self, collective: Future[Any]) -> None:
        self._collectives.append(collective)

    def wait(self) -> None:
        """Let the current stream wait until every target is filled."""
        for collective in self._collectives:
            torch.cuda.current_stream().wait_event(collective.result())
        self._collectives.clear()


def _pinned(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)


def exchange_through_memory() -> None:
    """Make Megatron-Core's DistributedDataParallel use this; once, after gloo's initialization."""
    from megatron.core.distributed import param_and_grad_buffer

    courier = _Courier()

    @contextmanager
    def coalescing(
        group: Any = None, device: Any = None, async_ops: bool = False
    ) -> Iterator[_Flight]:
        """As torch's manager of the same purpose: collectives inside start at its end."""
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
