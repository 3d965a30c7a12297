"""A scenario: what it claims, which variants it trains, and how it judges what was seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from overlapkit.lab.corpus import VOCABULARY
from overlapkit.lab.measurements import Measured, Seen
from overlapkit.lab.protocol import Block, Variant
from overlapkit.lab.user_config import UserConfig

Outcome = Literal["confirmed", "not confirmed", "not testable here"]
CONFIRMED: Outcome = "confirmed"
NOT_CONFIRMED: Outcome = "not confirmed"
NOT_TESTABLE: Outcome = "not testable here"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: what was to be shown, in one sentence.
        outcome: whether it was.
        evidence: the figures that decided, in one sentence; for what is not testable, why.
    """

    claim: str
    outcome: Outcome
    evidence: str


@dataclass(frozen=True)
class Setting:
    """What the user chose, for scenarios to build their variants from.

    Attributes:
        device: "cpu" or "cuda".
        ranks: --ranks; None: each scenario's own.
        steps: --steps, counted steps of a variant in all; None: each scenario's own.
        base: of the user's configuration what a scenario keeps under its own settings: sizes,
            precision, optimizer.
        user: the user's configuration, whole.
        shaped: whether the link between ranks is a slow one, or what connects GPUs: whether
            communication takes a time that is worth hiding.
        te: whether Transformer Engine can be imported.
        compute_capability: of the GPU; None without.
        gpus: how many there are.
        cores: of this machine that may be used.
    """

    device: str = "cpu"
    ranks: int | None = None
    steps: int | None = None
    base: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    user: UserConfig | None = None
    shaped: bool = True
    te: bool = False
    compute_capability: str | None = None
    gpus: int = 0
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def turns(self, rounds: int, steps: int) -> tuple[int, int]:
        """Rounds and counted steps of each that come to --steps, or the scenario's own."""
        if self.steps is None:
            return rounds, steps
        rounds = min(rounds, self.steps)
        return rounds, -(-self.steps // rounds)


@dataclass(frozen=True)
class Scenario:
    """One thing to prove.

    Attributes:
        name: as on the command line.
        title: what it shows, in a few words.
        ranks: processes that it takes unless --ranks says otherwise.
        blocks: its variants, in blocks that are each measured together.
        judge: verdicts from what was seen of those blocks.
        flexible: whether --ranks may change the number of ranks.
    """

    name: str
    title: str
    ranks: int
    blocks: Callable[[Setting], tuple[Block, ...]]
    judge: Callable[[Seen, Setting], list[Verdict]]
    flexible: bool = False


Settings = dict[str, dict[str, Any]]

MODEL: Settings = {
    "model": {
        "num_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "seq_length": 128,
        "vocab_size": VOCABULARY,
        "share_embeddings_and_output_weights": False,
    },
    "optimizer": {"optimizer": "adam", "lr": 1e-3, "clip_grad": 0.0},
    "train": {"micro_batch_size": 4, "global_batch_size": 8},
}
"""3.3 million parameters: a step of a few tenths of a second on one core."""

GPU_MODEL: Settings = {
    "model": {
        "num_layers": 8,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "seq_length": 2048,
        "share_embeddings_and_output_weights": False,
    },
    "mixed_precision": {
        "bf16": True,
        "params_dtype": "bfloat16",
        "pipeline_dtype": "bfloat16",
        "grad_reduce_in_fp32": True,
    },
    "optimizer": {"optimizer": "adam", "lr": 1e-4, "clip_grad": 0.0},
    "train": {"micro_batch_size": 1, "global_batch_size": 2},
}
"""0.4 billion parameters, a sequence of 2,048 tokens on each rank.

Per parameter a step computes 6 x 2,048 operations, 3e-11 s at 400 TFLOP/s, and a rank of two sends
2 bytes of gradients and 1 of weights, 1e-11 s at 300 GB/s: communication that is worth hiding and
can be hidden.
"""

SHARED_GPU_MODEL: Settings = {
    "model": {
        "num_layers": 4,
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "seq_length": 512,
        "share_embeddings_and_output_weights": False,
    },
    "optimizer": {"optimizer": "adam", "lr": 1e-4, "clip_grad": 0.0},
    "train": {"micro_batch_size": 64, "global_batch_size": 128},
}
"""51 million parameters in fp32, 32,768 tokens on each rank: for ranks that share a GPU.

Through gloo on the host a byte takes a hundred times as long as over NVLink, so there is a hundred
times as much to compute: 6 x 32,768 operations a parameter, 8e-9 s at half of 50 TFLOP/s (fp32
without tensor cores), against 8 bytes of gradients and weights, 4e-9 s at 2 GB/s.
"""

TINY: Settings = {
    "model": {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": 16,
        "vocab_size": VOCABULARY,
        "share_embeddings_and_output_weights": False,
    },
    # Plain gradient descent: a wrong gradient shows in the weights at its own size, which Adam
    # would normalize away.
    "optimizer": {"optimizer": "sgd", "lr": 0.5, "sgd_momentum": 0.0, "clip_grad": 0.0},
    "train": {"micro_batch_size": 1, "global_batch_size": 8},
}
"""For comparing numbers only."""

NO_OVERLAP: Settings = {
    "comm_overlap": {
        "tp_comm_overlap": False,
        "overlap_grad_reduce": False,
        "overlap_param_gather": False,
    }
}

DISTRIBUTED_OPTIMIZER: Settings = {
    "ddp": {"use_distributed_optimizer": True},
    "optimizer": {"use_distributed_optimizer": True},
}


def layered(*layers: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Sections put on top of each other, later keys winning."""
    result: Settings = {}
    for layer in layers:
        for section, content in layer.items():
            result[section] = {**result.get(section, {}), **content}
    return result


def variant(
    name: str, setting: Setting, *layers: Mapping[str, Mapping[str, Any]], **more: Any
) -> Variant:
    """A variant of the user's base, or of the lab's model, with layers on top."""
    return Variant(name=name, settings=layered(_model(setting), setting.base, *layers), **more)


def _model(setting: Setting) -> Settings:
    if setting.device != "cuda":
        return MODEL
    return GPU_MODEL if setting.gpus >= (setting.ranks or 2) else SHARED_GPU_MODEL


def one_microbatch(setting: Setting, ranks: int) -> Settings:
    """A global batch of one microbatch for each of as many data-parallel ranks."""
    size = _model(setting)["train"]["micro_batch_size"]
    return {"train": {"micro_batch_size": size, "global_batch_size": size * ranks}}


BUSY = 0.2
"""Spread of a variant's steps over their median, beyond which the machine is doing other things."""


def timed(claim: str, holds: bool, evidence: str, variants: Iterable[Measured]) -> Verdict:
    """A verdict on a claim about time: a machine that is busy otherwise can confirm it only."""
    if holds:
        return Verdict(claim, CONFIRMED, evidence)
    busy = [
        f"{one.name} by {one.spread / one.step:.0%}"
        for one in variants
        if one.spread > BUSY * one.step
    ]
    if busy:
        why = f"the machine is busy: half of the steps vary beyond that, {', '.join(busy)}; "
        return Verdict(claim, NOT_TESTABLE, why + evidence)
    return Verdict(claim, NOT_CONFIRMED, evidence)


def exposes_less(variants: Sequence[Measured], claim: str, dimension: str | None = None) -> Verdict:
    """Whether the last variant exposes less communication than the first, and none more on the way.

    Args:
        variants: in the order in which exposed communication is to fall.
        claim: what is claimed.
        dimension: only this one's communication; None for all.
    """
    profiles = [one.profile for one in variants if one.profile is not None]
    exposed = [
        p.exposed if dimension is None else p.by_dimension.get(dimension, (0.0, 0.0))[1]
        for p in profiles
    ]
    rises = any(
        later.step_spread + before.step_spread < b - a
        for (before, later), (a, b) in zip(pairwise(profiles), pairwise(exposed), strict=True)
    )
    shown = " -> ".join(f"{seconds * 1e3:.0f}" for seconds in exposed)
    evidence = f"{shown} ms a step exposed ({', '.join(one.name for one in variants)})"
    return timed(claim, exposed[-1] < exposed[0] and not rises, evidence, variants)


def shorter(off: Measured, on: Measured, claim: str) -> Verdict:
    """Whether a variant's step is shorter than another's beyond what both vary by."""
    gain = off.step - on.step
    noise = off.spread + on.spread
    evidence = (
        f"median step {off.step * 1e3:.0f} -> {on.step * 1e3:.0f} ms, "
        f"{on.step / off.step:.2f} x; both vary by {noise * 1e3:.0f} ms"
    )
    return timed(claim, gain > noise, evidence, (off, on))


def identical(variants: list[Measured], claim: str) -> Verdict:
    """Whether variants of one layout ended in the same weights and went through the same losses."""
    first = variants[0]
    differ = [
        one.name
        for one in variants[1:]
        if one.digests != first.digests or one.losses != first.losses
    ]
    if differ:
        return Verdict(claim, NOT_CONFIRMED, f"{', '.join(differ)}: not those of {first.name}")
    steps = len(next(iter(first.losses.values()), []))
    return Verdict(
        claim,
        CONFIRMED,
        f"{len(variants)} variants, {steps} steps each: every bit of the weights of "
        f"{len(first.digests)} ranks, and every loss, is the same",
    )
