"""Situations in which `trace` or `compare` says something, by name: each gives the whole answer.

The programs of the catalogue are situations, and so are the scenarios of the generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import tiny_trace as tiny
from support.field import nsight
from support.field.catalogue import PROGRAMS
from support.field.machine import TORCH_2_6, Machine
from support.field.megatron import Megatron
from support.field.pairs import PAIRS
from support.field.ranks import configuration, cpu_ranks, ddp_rank, host_range
from support.field.training import (
    ALL_REDUCE,
    GEMM,
    ddp,
    load_batch,
    step,
    torchtitan_pipeline,
)
from support.field.uneven import accumulation, checkpoint, late_batch
from support.trace_answers import Answer, trace_of
from support.trace_generator import SCENARIOS, write_kineto
from support.trace_reports import quick

Situation = Callable[[Path], Answer]


# What is read.


def cut(folder: Path) -> Answer:
    """The recording ends in the middle of a step."""
    m = ddp_rank()
    last = next(e for e in m.events if e["name"] == "ProfilerStep#13")
    end = last["ts"] + 0.6 * last["dur"]
    m.events = [e for e in m.events if e["ts"] < end]
    return trace_of(m.write(folder / "cut.json"))


def truncated(folder: Path) -> Answer:
    """The file ends in the middle of an event."""
    path = Path(ddp_rank().write(folder / "truncated.json"))
    path.write_bytes(path.read_bytes()[:-5000])
    return trace_of(str(path))


def stray(folder: Path) -> Answer:
    """A CUDA context on another device."""
    m = ddp_rank()
    at = m.events[-1]["ts"]
    m.events.append(tiny.kernel("memset_kernel", at, 2, device=1, pid=1))
    return trace_of(m.write(folder / "stray.json"))


def unknown_kernels(folder: Path) -> Answer:
    """A kernel of no known library, one that computes and communicates; and what is stated."""
    m = Machine(TORCH_2_6)
    for _ in range(3):
        m.kernel(GEMM, 500)
        m.kernel("my_fast_all_reduce_push(int)", 100)
        m.kernel("void flux::gemm_rs_kernel<float>(int)", 100)
    path = m.write(folder / "unknown.json")
    return trace_of(path, comm=["no_such_kernel"], group=["nothing=TP"])


def stated_kernels(folder: Path) -> Answer:
    """The same kernel, which the user calls communication."""
    m = Machine(TORCH_2_6)
    for _ in range(3):
        m.kernel(GEMM, 500)
        m.kernel("my_fast_all_reduce_push(int)", 100)
    return trace_of(m.write(folder / "stated.json"), comm=["my_fast"])


def cpu(folder: Path) -> Answer:
    """CPU ranks over gloo, half of whose step is Python."""
    return trace_of(cpu_ranks(folder))


def gloo(folder: Path) -> Answer:
    """A GPU whose ranks communicate over gloo."""
    m = ddp_rank(kernel=GEMM, label=None)
    m.backend = "gloo"
    for event in list(m.events):
        if event["name"] == "c10d::allreduce_":
            m.events.append({**event, "name": "gloo:all_reduce", "tid": 88})
    m.events = [e for e in m.events if "nccl" not in e["name"]]
    for event in m.events:
        for key in [k for k in event.get("args", {}) if k[0].isupper() or k == "dtype"]:
            del event["args"][key]
    return trace_of(m.write(folder / "gloo.json"))


# Steps.


def without_launches(folder: Path) -> Answer:
    """Ranges on the host, and nothing that connects work to them; the device waits often."""
    m = ddp_rank(wait_us=6000)
    m.events = [e for e in m.events if e["cat"] not in ("cuda_runtime", "gpu_user_annotation")]
    return trace_of(m.write(folder / "t.json"))


def launched_elsewhere(folder: Path) -> Answer:
    """Work that was launched before the ranges of its steps."""
    events = [tiny.kernel(GEMM, 1000 + 500 * n, 490, correlation=n + 1) for n in range(6)]
    events += [_launch(5 + n, n + 1) for n in range(6)]
    events += [tiny.step(n, 1000 + 1500 * n, 1490, "user_annotation") for n in range(2)]
    return trace_of(tiny.write(folder / "t.json", events))


def _launch(ts: float, correlation: int) -> dict[str, Any]:
    event = host_range("cudaLaunchKernel", ts, 1, "cuda_runtime")
    return {**event, "args": {"correlation": correlation}}


def loose(folder: Path) -> Answer:
    """One of ten kernels has no launch."""
    m = ddp_rank()
    for index, event in enumerate(e for e in m.events if e["cat"] == "kernel"):
        if index % 10 == 0:
            event["args"]["correlation"] = 0
    return trace_of(m.write(folder / "t.json"))


def empty_step(folder: Path) -> Answer:
    """A step that launches nothing."""
    m = ddp_rank(steps=3)
    with step(m, 13):
        m.spend(100)
    return trace_of(m.write(folder / "t.json"))


def short_ranges(folder: Path) -> Answer:
    """Ranges on the device that cover one kernel of each step, and none on the host."""
    events = []
    for n in range(4):
        at = 1000 + 10_000 * n
        events += [tiny.kernel(GEMM, at, 200), tiny.kernel(GEMM, at + 200, 9000)]
        events.append(tiny.step(n, at, 200))
    return trace_of(tiny.write(folder / "t.json", events))


def work_outside(folder: Path) -> Answer:
    """Half of the device's work is before the first step."""
    m = Machine(TORCH_2_6)
    for _ in range(20):
        m.kernel(GEMM, 1000)
    m.wait(m.free())
    ddp(m, steps=2)
    return trace_of(m.write(folder / "t.json"))


def idle_without_launches(folder: Path) -> Answer:
    """Kernels far apart, and nothing of the host."""
    events = [tiny.kernel(GEMM, 1000 + 1000 * n, 500) for n in range(6)]
    return trace_of(tiny.write(folder / "t.json", events))


def at_once(folder: Path) -> Answer:
    """Two communications of different dimensions that run at the same time, and no compute."""
    m = Machine(TORCH_2_6, world=16)
    for number in range(4):
        with step(m, number):
            done = m.kernel(GEMM, 1000)
            for stream, name in ((30, "mesh_dp"), (31, "mesh_cp")):
                group = (str(stream), name, list(range(4)))
                m.collective(ALL_REDUCE, 300, stream, "allreduce", group=group, after=[done])
            m.kernel(GEMM, 1000, after=[done + 300])
            m.wait(m.free())
    return trace_of(m.write(folder / "t.json"))


def nameless_exchange(folder: Path) -> Answer:
    """An exposed all-to-all of which nothing says whose it is."""
    m = Machine(TORCH_2_6, world=8)
    name = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
    for number in range(4):
        with step(m, number):
            done = m.kernel(GEMM, 1000)
            group = ("7", "undefined", list(range(8)))
            done = m.collective(name, 400, 30, "all_to_allv", group=group, after=[done])
            m.kernel(GEMM, 1000, after=[done])
            m.wait(m.free())
    return trace_of(m.write(folder / "t.json"))


def group_by_size(folder: Path) -> Answer:
    """A number where the name of a group is expected."""
    return trace_of(ddp_rank().write(folder / "t.json"), group=["8=TP"])


def no_operation(folder: Path) -> Answer:
    """RCCL's generic kernel, of which nothing says what it does."""
    m = Machine(TORCH_2_6)
    for number in range(4):
        with step(m, number):
            m.kernel(GEMM, 1000)
            m.kernel("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", 300, 20)
            m.wait(m.free())
    return trace_of(m.write(folder / "t.json"))


# Idle time and copies.


def _plain(folder: Path, body: Callable[[Machine, int], None]) -> Answer:
    m = Machine(TORCH_2_6)
    for number in range(4):
        with step(m, number):
            body(m, number)
            m.wait(m.free())
    return trace_of(m.write(folder / "t.json"))


def host_late(folder: Path) -> Answer:
    """The host computes between two kernels."""

    def body(m: Machine, _: int) -> None:
        m.kernel(GEMM, 1000)
        m.wait(m.free())
        m.spend(600)
        m.kernel(GEMM, 1000)

    return _plain(folder, body)


def waits_elsewhere(folder: Path, *, pipeline: bool = False) -> Answer:
    """A kernel that was launched long before it can begin."""

    def body(m: Machine, _: int) -> None:
        group = ("2", "mesh_pp", [0, 1])
        if pipeline:
            m.collective(ALL_REDUCE, 5, 30, "send", group=group)
        done = m.kernel(GEMM, 1000)
        m.kernel(GEMM, 1000, after=[done + 700])

    return _plain(folder, body)


def paused(folder: Path, *, steps: int = 3) -> Answer:
    """Profiled steps far apart, each of which begins with a wait for data."""
    m = Machine(TORCH_2_6)
    for number in range(steps):
        with step(m, number):
            load_batch(m, 900)
            m.kernel(GEMM, 1000)
            m.wait(m.free())
        m.spend(50_000)
    return trace_of(m.write(folder / "t.json"))


def copies(folder: Path, name: str) -> Answer:
    """A copy that nothing runs beside."""

    def body(m: Machine, _: int) -> None:
        m.kernel(GEMM, 1000)
        m.copy(name, 400, after=[m.free()])

    return _plain(folder, body)


def plain_copies(folder: Path) -> Answer:
    """A copy of which nsys does not say what memory it is from."""
    m = Machine(TORCH_2_6)
    for number in range(4):
        with step(m, number):
            m.kernel(GEMM, 1000)
            m.copy("Memcpy HtoD", 400, after=[m.free()])
            m.wait(m.free())
    return trace_of(nsight.write(m, folder / "t.sqlite"))


# Several ranks.


def several(folder: Path, *machines: Machine, names: str = "rank{}.json") -> Answer:
    """The traces of several ranks."""
    return trace_of(*(m.write(folder / names.format(n)) for n, m in enumerate(machines)))


def nameless(folder: Path) -> Answer:
    """Files that do not state their rank."""
    machines = [Machine(TORCH_2_6), Machine(TORCH_2_6)]
    paths = [ddp(m).write(folder / f"{n}.json") for m, n in zip(machines, "xy", strict=True)]
    return trace_of(*paths)


def _generated(name: str) -> Situation:
    return lambda folder: trace_of(*(t.path for t in write_kineto(quick(name), folder)))


def _with_config(name: str, model: str, rest: str = "") -> Situation:
    def answer(folder: Path) -> Answer:
        (truth,) = write_kineto(quick(name).but(ranks=1), folder)
        return trace_of(truth.path, config=configuration(folder, model, rest))

    return answer


_PP4 = ", pipeline_model_parallel_size: 4, pipeline_dtype: bf16"
_numbers = itertools.count()


def _program(name: str) -> Situation:
    return lambda folder: trace_of(PROGRAMS[name].write(folder, f"p{next(_numbers)}"))


SITUATIONS: dict[str, Situation] = {
    **{name: _program(name) for name in PROGRAMS},
    **{f"generated: {name}": _generated(name) for name in SCENARIOS},
    "cut": cut,
    "truncated": truncated,
    "late batch": late_batch,
    "late batch, taken ahead": lambda f: late_batch(f, ahead=True),
    "late host": lambda f: late_batch(f, name="save_checkpoint"),
    "stray device": stray,
    "unknown kernels": unknown_kernels,
    "stated kernels": stated_kernels,
    "cpu": cpu,
    "gloo": gloo,
    "without launches": without_launches,
    "launched elsewhere": launched_elsewhere,
    "loose": loose,
    "empty step": empty_step,
    "short ranges": short_ranges,
    "work outside": work_outside,
    "checkpoint": checkpoint,
    "accumulation": accumulation,
    "idle without launches": idle_without_launches,
    "exposed at once": at_once,
    "nameless exchange": nameless_exchange,
    "group by size": group_by_size,
    "no operation": no_operation,
    "host late": host_late,
    "waits elsewhere": waits_elsewhere,
    "pipeline waits": lambda f: waits_elsewhere(f, pipeline=True),
    "paused": paused,
    "paused, one step": lambda f: paused(f, steps=1),
    "pageable": lambda f: copies(f, "Memcpy HtoD (Pageable -> Device)"),
    "pinned": lambda f: copies(f, "Memcpy HtoD (Pinned -> Device)"),
    "to host": lambda f: copies(f, "Memcpy DtoH (Device -> Pageable)"),
    "to pinned memory": lambda f: copies(f, "Memcpy DtoH (Device -> Pinned)"),
    "on device": lambda f: copies(f, "Memcpy DtoD (Device -> Device)"),
    "plain copies": plain_copies,
    "bandwidth": lambda f: trace_of(ddp_rank(bucket_us=9000).write(f / "t.json")),
    "bandwidth, in the switch": lambda f: trace_of(
        ddp_rank(bucket_us=9000, kernel=ALL_REDUCE.replace("RING_LL", "NVLS")).write(f / "t.json")
    ),
    "bandwidth over nodes": lambda f: trace_of(
        ddp_rank(world=64, bucket_us=9000).write(f / "t.json")
    ),
    "one bucket": lambda f: trace_of(ddp_rank(buckets=1, bucket_us=2000).write(f / "t.json")),
    "no sequence parallelism": lambda f: trace_of(
        Megatron(sequence=False).run().write(f / "t.json")
    ),
    "bubble": lambda f: trace_of(torchtitan_pipeline(fill_us=4000).write(f / "t.json")),
    "two ranks": lambda f: several(f, ddp_rank(0), ddp_rank(1)),
    "slow rank": lambda f: several(f, ddp_rank(0), ddp_rank(1, layers=16)),
    "other steps": lambda f: several(f, ddp_rank(0), ddp_rank(1, first=12)),
    "other calls": lambda f: several(f, ddp_rank(0), ddp_rank(1, buckets=2)),
    "nameless": nameless,
    "rank twice": lambda f: several(f, ddp_rank(0), ddp_rank(0), names="file{}.json"),
    "pipeline, configured": _with_config("pp bubbles", _PP4),
    "interleaved, configured": _with_config(
        "pp bubbles", f"{_PP4}, virtual_pipeline_model_parallel_size: 2"
    ),
    **PAIRS,
}
