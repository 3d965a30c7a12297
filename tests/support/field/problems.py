"""Each problem that has a remedy, in a program of each framework: what is said depends on both."""

from __future__ import annotations

from collections.abc import Callable

from overlapkit.trace.diagnose.remedies import Problem
from overlapkit.trace.read.host.marks import Framework
from support.field.machine import TORCH_2_6, Machine
from support.field.training import (
    ADAM,
    ALL_GATHER,
    ALL_REDUCE,
    GEMM,
    REDUCE_SCATTER,
    SEND_RECV,
    step,
)

MARKS: dict[Framework, str] = {
    "megatron": "/opt/megatron-lm/megatron/training/training.py(1000): train_step",
    "ddp": "DistributedDataParallel.forward",
    "data-parallel": "DataParallel.forward",
    "fsdp2": "FSDP::pre_forward (layers.0)",
    "fsdp1": "FullyShardedDataParallel.forward",
    "deepspeed": "/opt/deepspeed/runtime/engine.py(1900): forward",
    "torchtitan": "/opt/torchtitan/train.py(300): train_step",
    "vllm": "/opt/vllm/v1/worker/gpu_worker.py(300): execute_model",
    "sglang": "/opt/sglang/srt/managers/scheduler.py(700): run_batch",
    "tensorrt_llm": "/opt/tensorrt_llm/_torch/pyexecutor/model_engine.py(900): forward",
}
"""A range of each framework that says nothing but its name."""

Send = Callable[[str, str, str, float], float]
"""Runs a collective on a dimension (its kernel, its name, its length), exposed; returns its end."""
Body = Callable[[Machine, Send], None]

BROADCAST = "ncclDevKernel_Broadcast_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def _alternating(dimension: str, *kinds: tuple[str, str], us: float = 200) -> Body:
    """Collectives that the next product needs, all through the step."""

    def body(m: Machine, send: Send) -> None:
        for _ in range(4):
            for kernel, called in kinds:
                m.kernel(GEMM, 300)
                m.kernel(GEMM, 300, after=[send(dimension, kernel, called, us)])

    return body


def _at_end(count: int) -> Body:
    """Gradients that are reduced after the backward pass."""

    def body(m: Machine, send: Send) -> None:
        m.kernel(GEMM, 3000)
        ends = [send("dp_shard", REDUCE_SCATTER, "_reduce_scatter_base", 400) for _ in range(count)]
        m.kernel(ADAM, 100, after=ends)

    return body


def _bubble(m: Machine, send: Send) -> None:
    for _ in range(2):
        send("pp", SEND_RECV, "recv", 700)
    m.kernel(GEMM, 6000, after=[m.free(30)])
    m.wait(m.free())
    for _ in range(2):
        send("pp", SEND_RECV, "send", 700)


def _bandwidth(m: Machine, send: Send) -> None:
    for _ in range(2):
        m.kernel(GEMM, 500)
        m.collective(REDUCE_SCATTER, 2000, 30, "_reduce_scatter_base", group=group_of("dp_shard"))
    m.kernel(ADAM, 500, after=[m.free(30)])


PROBLEMS: dict[Problem, Body] = {
    "one reduction": _at_end(1),
    "late reductions": _at_end(3),
    "parameter gather": _alternating("dp_shard", (ALL_GATHER, "_allgather_base")),
    "tensor parallel": _alternating(
        "tp", (ALL_GATHER, "_allgather_base"), (REDUCE_SCATTER, "_reduce_scatter_base")
    ),
    "tensor parallel without sequence parallel": _alternating("tp", (ALL_REDUCE, "allreduce")),
    "pipeline": _alternating("pp", (SEND_RECV, "recv"), (SEND_RECV, "send")),
    "pipeline bubble": _bubble,
    "experts": _alternating("ep", (SEND_RECV, "all_to_allv")),
    "bandwidth": _bandwidth,
    "exposed": _alternating("dp_shard", (REDUCE_SCATTER, "_reduce_scatter_base")),
    "exposed elsewhere": _alternating("cp", (SEND_RECV, "send")),
    "exposed between replicas": _alternating("dp_replicate", (ALL_REDUCE, "allreduce")),
    "exposed buffers": _alternating("dp_replicate", (BROADCAST, "broadcast")),
    "exposed context exchange": _alternating("cp", (SEND_RECV, "all_to_allv")),
}
"""What runs in a step; the problem of an interleaved pipeline needs a configuration."""


def group_of(dimension: str) -> tuple[str, str, list[int]]:
    """A group of a device mesh."""
    return (dimension, f"mesh_{dimension}", list(range(4)))


def program(problem: Problem, framework: Framework | None) -> Machine:
    """Three steps of a job in which nothing but this problem costs time."""
    m = Machine(TORCH_2_6, world=16, groups=[("0", "default_pg", list(range(16)))])

    def send(dimension: str, kernel: str, called: str, us: float) -> float:
        after = [m.free(), m.free(30)]
        return m.collective(kernel, us, 30, called, group=group_of(dimension), after=after)

    for number in range(3):
        with step(m, number):
            if framework is not None:
                mark = MARKS[framework]
                with m.range(mark, "python" if "/" in mark else "annotation"):
                    pass
            PROBLEMS[problem](m, send)
            m.wait(max(m.free(), m.free(30)))
    return m
