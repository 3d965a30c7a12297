"""Situations in which one step, or one of several, is not as the others."""

from __future__ import annotations

from pathlib import Path

from support.field.machine import TORCH_2_6, Machine
from support.field.ranks import ddp_rank, host_range
from support.field.training import ALL_REDUCE, GEMM, ddp, step
from support.trace_answers import Answer, trace_of


def late_batch(
    folder: Path,
    *,
    ahead: bool = False,
    name: str = "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__",
) -> Answer:
    """One of the steps begins with a long wait for its batch, or ends with that for the next.

    Args:
        folder: where the profile is written.
        ahead: whether the loop takes the next batch at the end of a step.
        name: the range on the host meanwhile.
    """
    m = ddp_rank()
    late = next(e for e in m.events if e["name"] == "ProfilerStep#12")
    pause = 0.5 * late["dur"]
    at = late["ts"] + (late["dur"] - 1 if ahead else 0)
    for event in m.events:
        if event["ts"] > at:
            event["ts"] += pause
    late["dur"] += pause
    wait = host_range(name, at, pause)
    m.events.append(wait | {"pid": late["pid"], "tid": late["tid"]})
    return trace_of(m.write(folder / "late.json"))


def checkpoint(folder: Path) -> Answer:
    """One of six steps writes a checkpoint."""
    m = ddp_rank(steps=3)
    with step(m, 13):
        for _ in range(10):
            m.copy("Memcpy DtoH (Device -> Pageable)", 900, after=[m.free()])
        m.wait(m.free())
        m.spend(20_000)
    return trace_of(ddp(m, steps=2, first=14).write(folder / "t.json"))


def accumulation(folder: Path) -> Answer:
    """Gradients are reduced in one of four steps, which waits for half of the reduction."""
    m = Machine(TORCH_2_6, world=8)
    for number in range(8):
        with step(m, number):
            done = m.kernel(GEMM, 1000)
            if number % 4 == 3:
                group = ("7", "mesh_dp", list(range(8)))
                done = m.collective(ALL_REDUCE, 400, 30, "allreduce", group=group, after=[done])
                m.kernel(GEMM, 200)
                m.kernel(GEMM, 500, after=[done])
            m.wait(m.free())
    return trace_of(m.write(folder / "t.json"))
