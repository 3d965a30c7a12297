"""DeepSpeed's training loop, as programs of a `Machine`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from support.field.machine import TORCH_2_6, Machine
from support.field.training import (
    ADAM,
    ALL_GATHER,
    ALL_REDUCE,
    BACKWARD_THREAD,
    COMM,
    GELU,
    NORM,
    REDUCE_SCATTER,
    layer,
    load_batch,
    step,
)


def deepspeed(
    stage: int,
    *,
    stacks: bool = True,
    overlap: bool = True,
    prefetch: int = 0,
    steps: int = 3,
    layers: int = 8,
) -> Machine:
    """DeepSpeed: with `stacks`, Python functions are recorded, which alone name it.

    With `prefetch`, parameters of as many layers are gathered ahead.
    """
    world = list(range(8))
    group = ("0", "default_pg", world)
    m = Machine(TORCH_2_6, world=8, groups=[group], gpu="NVIDIA A100-SXM4-80GB")
    path = "/opt/conda/lib/python3.11/site-packages/deepspeed/runtime"

    def frames(*names: str) -> Any:
        return m.frames(*(f"{path}/{name}" for name in names)) if stacks else nullcontext()

    def call(kernel: str, us: float, operator: str, called: str, after: float) -> float:
        with m.range(f"c10d::{operator}"):
            return m.collective(
                kernel, us, COMM, called, group=group, after=[after], label=f"nccl:{called}"
            )

    def gather(us: float, after: float = 0.0) -> float:
        where = "zero/partition_parameters.py(1190): all_gather_coalesced"
        fetch = "zero/partitioned_param_coordinator.py(276): fetch_sub_module"
        with frames(fetch, where):
            return call(ALL_GATHER, us, "_allgather_base_", "_allgather_base", after)

    def gathers() -> Iterator[float]:
        """When the parameters of each layer are there; asking for one gathers others ahead."""
        ahead = [gather(150) for _ in range(prefetch)] if stage == 3 else []
        for index in range(layers):
            if stage == 3 and index + prefetch < layers:
                ahead.append(gather(150))
            yield ahead[index] if stage == 3 else 0.0

    def reduce(us: float, after: float) -> float:
        where = "zero/stage3.py(1200): reduce_partition_and_remove_grads"
        if stage < 3:
            where = "zero/stage_1_and_2.py(960): reduce_independent_p_g_buckets_and_remove_grads"
        with frames(where):
            if stage == 3:
                return call(
                    REDUCE_SCATTER, us, "_reduce_scatter_base_", "_reduce_scatter_base", after
                )
            if stage == 2:
                return call(ALL_REDUCE, us, "reduce_", "reduce", after)
            return call(ALL_REDUCE, us, "allreduce_", "all_reduce", after)

    for number in range(1, 1 + steps):
        with step(m, number), frames("engine.py(1800): forward"):
            load_batch(m)
            for ready in gathers():
                m.kernel(NORM, 10, after=[ready])
                layer(m, 400)
            reduced: list[float] = []
            with m.on(BACKWARD_THREAD):
                for ready in gathers():
                    m.kernel(NORM, 10, after=[ready])
                    done = layer(m, 800, "AddmmBackward0")
                    if overlap:
                        reduced.append(reduce(250, done))
            if not overlap:
                reduced = [reduce(600, m.free()) for _ in range(4)]
            with frames("engine.py(2150): step"):
                m.kernel(ADAM, 300, after=reduced)
                if stage < 3:
                    with frames("zero/stage_1_and_2.py(1820): step"):
                        done = gather(900, m.free())
                        m.kernel(GELU, 5, after=[done])
            m.wait(m.free())
    return m
