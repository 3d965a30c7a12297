"""Which software ran, as a profile tells it: its settings are the remedies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from overlapkit.trace.measure.step_times import Traffic
from overlapkit.trace.read.device_work import Work
from overlapkit.trace.read.host.marks import TRAINING, Framework

TITLES: dict[Framework, str] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tensorrt_llm": "TensorRT-LLM",
    "engine": "an inference engine",
    "deepspeed": "DeepSpeed",
    "megatron": "Megatron-Core",
    "torchtitan": "torchtitan",
    "fsdp2": "PyTorch FSDP2",
    "fsdp1": "PyTorch FSDP1",
    "ddp": "PyTorch DDP",
    "data-parallel": "PyTorch DataParallel",
}
"""What each is called, the outermost first: an engine or DeepSpeed decides where Megatron's code
runs inside it, and Megatron or torchtitan where PyTorch's wrappers do."""

ENGINES = frozenset[Framework]({"vllm", "sglang", "tensorrt_llm", "engine"})
"""Those that serve a model and do not train it."""

# Descriptions of process groups by Megatron-Core (parallel_state.py).
_MEGATRON_GROUP = re.compile(
    r"^(?:INTRA_|INTER_)?\w*(?:MODEL_PARALLEL|DATA_PARALLEL|DISTRIBUTED_OPTIMIZER|CONTEXT_PARALLEL|"
    r"EXPERT_\w+|EMBEDDING)_GROUP\w*$|^DATA_PARALLEL_GROUP_WITH_CP|^MODEL_PARALLEL_GROUP"
)
_ENGINE_GROUP = re.compile(r"^(?:tp|pp|dp|ep|dcp|pcp|world):\d+$")
_ENGINE_KERNELS: tuple[tuple[Framework, re.Pattern[str]], ...] = (
    ("sglang", re.compile(r"\bsgl_|\bsglang::|\bsgl::")),
    ("vllm", re.compile(r"\bvllm::")),
    # Engines share the kernels of these libraries; nothing that trains runs them.
    ("engine", re.compile(r"\b(?:tensorrt_llm|flashinfer)::")),
)


@dataclass(frozen=True)
class Detected:
    """The software of a profile.

    Attributes:
        name: None where nothing tells it.
        evidence: what tells it, in words.
    """

    name: Framework | None
    evidence: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether it can be a training job."""
        return self.name not in ENGINES


def detect(work: Work, traffic: Iterable[Traffic], *, configured: bool) -> Detected:
    """The software that a profile shows.

    Args:
        work: the work of the device.
        traffic: its kinds of communication.
        configured: whether the user gave the run's Megatron configuration.
    """
    found: dict[Framework, list[str]] = {}

    def note(name: Framework, what: str) -> None:
        found.setdefault(name, []).append(what)

    if configured:
        note("megatron", "the configuration")
    for name in TITLES:
        if work.frameworks[name]:
            note(name, "names of ranges on the host")
    groups = {g.description for g in work.groups} | {t.group or "" for t in traffic}
    described = sorted(g for g in groups if _MEGATRON_GROUP.match(g))
    if described:
        note("megatron", f"process group {described[0]}")
    trains = bool(work.frameworks[TRAINING])
    if trains and found.keys() & ENGINES:
        # A trainer that generates too, as for reinforcement learning: no one's settings hold for
        # all of it.
        return Detected("megatron" if configured else None, ("ranges of training and an engine",))
    for name, pattern in () if trains else _ENGINE_KERNELS:
        # Engines use each other's kernels: vLLM's run in SGLang too.
        if not found.keys() & ENGINES and any(pattern.search(k) for k in work.names):
            note(name, "names of kernels")
    if any(_ENGINE_GROUP.match(g) for g in groups) and not found and not trains:
        # SGLang's groups have vLLM's names.
        note("engine", "names of process groups")
    if configured:
        return Detected("megatron", tuple(found["megatron"]))
    for name in TITLES:
        if name in found:
            return Detected(name, tuple(found[name]))
    return Detected(None)
