"""Tensor parallelism with sequence parallelism: what the rules say is what happens."""

from __future__ import annotations

import math

from overlapkit.lab.full_tensors import distance
from overlapkit.lab.measurements import Measured, Seen
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    CONFIRMED,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    identical,
    layered,
    variant,
)

SHARDS: Settings = {
    "model": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "train": {"micro_batch_size": 2, "global_batch_size": 4},
    "optimizer": {"optimizer": "sgd", "lr": 0.1, "sgd_momentum": 0.0},
}
ASKED: Settings = {"comm_overlap": {"tp_comm_overlap": True}}
NOT_ASKED: Settings = {"comm_overlap": {"tp_comm_overlap": False}}
WHOLE: Settings = {
    "model": {"tensor_model_parallel_size": 1, "sequence_parallel": False},
}

DECIDED = "TP overlap is off where Transformer Engine is missing, for that reason."
UNCHANGED = "Asked for and refused, it changes nothing: the same weights as not asked for."
SAME = "Loss and weights equal those of TP=1, but for the order of the additions."
USERBUFFERS = "With Transformer Engine, userbuffers kernels appear and overlap."

TOLERANCE = 1e-5
"""Relative: fp32 sums over two shards instead of one. Seen: below 1e-6 after three steps."""
TOLERANCE_BF16 = 1e-2
"""The same sums in bf16, whose neighbours are 2**-8 apart; GPUs train in it."""


def blocks(setting: Setting) -> tuple[Block, ...]:
    """TP=2 with the overlap asked for and not, and the whole model in one process."""
    rounds, steps = setting.turns(2, 3)
    shards = layered(SHARDS, ASKED)
    return (
        Block(
            name="tp-whole",
            ranks=1,
            variants=(variant("whole", setting, SHARDS, WHOLE, NOT_ASKED, weights=True),),
            rounds=0,
            steps=3,
        ),
        Block(
            name="tp-numbers",
            ranks=2,
            variants=(variant("tp2", setting, shards, weights=True),),
            rounds=0,
            steps=3,
        ),
        Block(
            name="tp",
            ranks=2,
            variants=(
                variant("not-asked", setting, SHARDS, NOT_ASKED),
                variant("asked", setting, shards),
            ),
            rounds=rounds,
            steps=steps,
            link_of="not-asked",
        ),
    )


def judge(seen: Seen, setting: Setting) -> list[Verdict]:
    """The decision, that nothing changed, the numbers, and userbuffers where they can run."""
    timed = seen.variants("tp")
    asked = timed["asked"]
    verdicts = [_same(seen, TOLERANCE_BF16 if setting.device == "cuda" else TOLERANCE)]
    if setting.te and setting.device == "cuda":
        return [*verdicts, _userbuffers(timed, setting)]
    return [
        _decided(asked),
        identical(list(timed.values()), UNCHANGED),
        *verdicts,
        Verdict(USERBUFFERS, NOT_TESTABLE, _why_not(setting)),
    ]


def _why_not(setting: Setting) -> str:
    if setting.device != "cuda":
        return "it takes Transformer Engine and a pair of GPUs joined by NVLink; this ran on CPUs"
    if not setting.te:
        return "Transformer Engine cannot be imported"
    return f"it takes two GPUs; this machine has {setting.gpus}"


def _decided(asked: Measured) -> Verdict:
    refused = [
        d for d in asked.decisions if d.knob.endswith("tp_comm_overlap") and d.effective is False
    ]
    off = asked.effective["model.tp_comm_overlap"] is False
    return Verdict(
        DECIDED,
        CONFIRMED if off and refused else NOT_CONFIRMED,
        refused[0].reason if refused else "no rule spoke",
    )


def _same(seen: Seen, tolerance: float) -> Verdict:
    apart = distance(
        seen.tensors("tp-numbers", "tp2", "weight"), seen.tensors("tp-whole", "whole", "weight")
    )
    shards = next(iter(seen.variants("tp-numbers")["tp2"].losses.values()))
    whole = next(iter(seen.variants("tp-whole")["whole"].losses.values()))
    losses = max(
        abs(a - b) / abs(b) if a and b else math.inf for a, b in zip(shards, whole, strict=True)
    )
    return Verdict(
        SAME,
        CONFIRMED if max(apart.relative, losses) <= tolerance else NOT_CONFIRMED,
        f"losses differ by {losses:.1e}, weights by {apart.relative:.1e} of their norm at most; "
        f"{tolerance:.0e} is allowed",
    )


def _userbuffers(timed: dict[str, Measured], setting: Setting) -> Verdict:
    if setting.gpus < 2:
        return Verdict(USERBUFFERS, NOT_TESTABLE, _why_not(setting))
    asked = timed["asked"]
    kernels = sorted(
        {
            collective.sort.name
            for report in asked.reports
            for collective in report.collectives
            if "userbuffers" in collective.sort.name.lower()
        }
    )
    assert asked.profile is not None
    overlap = asked.profile.overlap or 0.0
    return Verdict(
        USERBUFFERS,
        CONFIRMED if kernels and overlap > 0.5 else NOT_CONFIRMED,
        f"{len(kernels)} userbuffers kernels; {overlap:.0%} of TP communication is hidden",
    )


SCENARIO = Scenario(
    name="tp",
    title="tensor parallelism: what the rules say of TP overlap is what happens",
    ranks=2,
    blocks=blocks,
    judge=judge,
)
