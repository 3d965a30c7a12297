"""Pairs of runs in which `compare` says something, by name: each gives the whole answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.field import engines
from support.field.machine import TORCH_2_6, Machine
from support.field.ranks import configuration, cpu_ranks, ddp_rank
from support.field.training import GEMM, ddp, step
from support.trace_answers import Answer, compare_of
from support.trace_generator import SCENARIOS, write_kineto


def pair(folder: Path, base: Machine, new: Machine, **given: Any) -> Answer:
    """Two runs compared."""
    return compare_of(base.write(folder / "base.json"), new.write(folder / "new.json"), **given)


def folders(folder: Path, base: list[Machine], new: list[Machine], **given: Any) -> Answer:
    """Two runs of several ranks compared."""
    names = []
    for name, machines in (("base", base), ("new", new)):
        (folder / name).mkdir()
        for m in machines:
            m.write(folder / name / f"rank{m.rank}.json")
        names.append(str(folder / name))
    return compare_of(*names, **given)


def _iterations(m: Machine, count: int, kernels: int, us: float = 100) -> Machine:
    for _ in range(count):
        for index in range(kernels):
            m.kernel(f"kernel_{index}", us)
        m.wait(m.free())
        m.spend(300)
    return m


def _spaced(between_us: float) -> Machine:
    m = Machine(TORCH_2_6)
    for number in range(8):
        with step(m, number):
            for _ in range(10):
                m.kernel(GEMM, 100)
            m.wait(m.free())
        m.spend(between_us)
    return m


def configured(folder: Path, *, same: bool) -> Answer:
    """Two runs with their configurations, which differ in nothing, or in what moved nothing."""
    paths = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        scenario = SCENARIOS["dp overlapped"].but(noise=0, steps=4)
        paths.append(write_kineto(scenario, folder / name)[0].path)
    rest = "ddp: {use_distributed_optimizer: true, overlap_grad_reduce: true"
    configs = (
        configuration(folder, "", rest + "}", "base.yaml"),
        configuration(
            folder, "", rest + ("}" if same else ", overlap_param_gather: true}"), "new.yaml"
        ),
    )
    return compare_of(*paths, configs=configs)


def _on_a100(m: Machine) -> Machine:
    m.gpu = "NVIDIA A100-SXM4-80GB"
    return m


def _outside() -> Machine:
    m = Machine(TORCH_2_6)
    for _ in range(20):
        m.kernel(GEMM, 1000)
    m.wait(m.free())
    return ddp(m, steps=2)


def uneven() -> Machine:
    """Steps that differ by a tenth."""
    m = Machine(TORCH_2_6)
    for number in range(9):
        with step(m, number):
            m.kernel(GEMM, 1000 + 50 * (number % 3))
            m.wait(m.free())
    return m


def gpus(count: int) -> Machine:
    """A process with several GPUs."""
    m = ddp_rank()
    for event in [e for e in m.events if e["cat"] == "kernel"]:
        for device in range(1, count):
            args = {**event["args"], "device": device}
            m.events.append({**event, "pid": device, "args": args})
    return m


PAIRS: dict[str, Callable[[Path], Answer]] = {
    "compare: uneven": lambda f: pair(f, uneven(), uneven()),
    "compare: same": lambda f: pair(f, ddp_rank(steps=8), ddp_rank(steps=8)),
    "compare: slower": lambda f: pair(f, ddp_rank(steps=8), ddp_rank(steps=8, bucket_us=2500)),
    "compare: faster": lambda f: pair(f, ddp_rank(steps=8, bucket_us=2500), ddp_rank(steps=8)),
    "compare: two steps": lambda f: pair(f, ddp_rank(steps=2), ddp_rank(steps=2, bucket_us=2500)),
    "compare: no steps": lambda f: pair(f, engines.one_gpu(), engines.one_gpu(7)),
    "compare: repeated": lambda f: pair(
        f, _iterations(Machine(TORCH_2_6), 6, 20), _iterations(Machine(TORCH_2_6), 6, 40)
    ),
    "compare: cpu": lambda f: compare_of(
        cpu_ranks(f), ddp_rank().write(f / "gpu.json"), force=True
    ),
    "compare: worlds": lambda f: pair(f, ddp_rank(), ddp_rank(world=16), force=True),
    "compare: more ranks": lambda f: folders(
        f, [ddp_rank()], [ddp_rank(), ddp_rank(1)], force=True
    ),
    "compare: gpus": lambda f: pair(f, ddp_rank(), _on_a100(ddp_rank()), force=True),
    "compare: more gpus of a process": lambda f: pair(f, gpus(2), gpus(3), force=True),
    "compare: a process or ranks": lambda f: pair(f, ddp_rank(), gpus(3), force=True),
    "compare: other ranks' steps": lambda f: folders(
        f, [ddp_rank(), ddp_rank(1)], [ddp_rank(), ddp_rank(1, first=12)]
    ),
    "compare: other gpus": lambda f: folders(
        f, [ddp_rank(), ddp_rank(1)], [ddp_rank(), _on_a100(ddp_rank(1))]
    ),
    "compare: many kernels": lambda f: pair(
        f, ddp_rank(), ddp_rank(layers=128, buckets=4), force=True
    ),
    "compare: more kernels": lambda f: pair(f, ddp_rank(), ddp_rank(layers=16)),
    "compare: between": lambda f: pair(f, _spaced(900), _spaced(3000)),
    "compare: only one has steps": lambda f: pair(f, ddp_rank(), engines.one_gpu(), force=True),
    "compare: outside": lambda f: pair(f, _outside(), _outside()),
    "compare: batches": lambda f: pair(f, engines.vllm_decode(), engines.vllm_decode(requests=16)),
    "compare: mixed batches": lambda f: pair(f, engines.vllm_mixed(), engines.vllm_decode()),
    "compare: same configurations": lambda f: configured(f, same=True),
    "compare: a setting without effect": lambda f: configured(f, same=False),
}
