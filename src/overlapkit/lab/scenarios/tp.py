"""Tensor parallelism with sequence parallelism: TP overlap does what the rules say."""

from __future__ import annotations

import math

from overlapkit.lab.full_tensors import distance
from overlapkit.lab.measurements import MeasuredVariant, Observations
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
REQUESTED: Settings = {"comm_overlap": {"tp_comm_overlap": True}}
NOT_REQUESTED: Settings = {"comm_overlap": {"tp_comm_overlap": False}}
UNPARTITIONED: Settings = {
    "model": {"tensor_model_parallel_size": 1, "sequence_parallel": False},
}

DECIDED = "TP overlap is off where Transformer Engine is missing, and the reason says so."
UNCHANGED = "A refused request changes nothing: the weights are those without the request."
SAME = "Loss and weights equal those of TP=1, except for the order of the additions."
USERBUFFERS = "With Transformer Engine, userbuffers kernels run and overlap with compute."

TOLERANCE = 1e-5
"""Relative: fp32 sums over two shards instead of one. Observed: below 1e-6 after three steps."""
TOLERANCE_BF16 = 1e-2
"""The same for bf16, in which GPUs train: neighbouring values are 2**-8 apart."""


def blocks(setting: Setting) -> tuple[Block, ...]:
    """TP=2 with and without requesting overlap, and the unpartitioned model in one process."""
    rounds, steps = setting.turns(2, 3)
    shards = layered(SHARDS, REQUESTED)
    return (
        Block(
            name="tp-whole",
            ranks=1,
            variants=(
                variant("whole", setting, SHARDS, UNPARTITIONED, NOT_REQUESTED, weights=True),
            ),
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
                variant("not-asked", setting, SHARDS, NOT_REQUESTED),
                variant("asked", setting, shards),
            ),
            rounds=rounds,
            steps=steps,
            link_of="not-asked",
        ),
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """The decision, that it changes nothing, the results, and userbuffers where they can run."""
    timed = observed.variants("tp")
    requested = timed["asked"]
    verdicts = [_same(observed, TOLERANCE_BF16 if setting.device == "cuda" else TOLERANCE)]
    if setting.te and setting.device == "cuda":
        return [*verdicts, _userbuffers(timed, setting)]
    return [
        _decided(requested),
        identical(list(timed.values()), UNCHANGED),
        *verdicts,
        Verdict(USERBUFFERS, NOT_TESTABLE, _why_not(setting)),
    ]


def _why_not(setting: Setting) -> str:
    if setting.device != "cuda":
        return "it needs Transformer Engine and two GPUs connected by NVLink; this ran on CPUs"
    if not setting.te:
        return "Transformer Engine cannot be imported"
    return f"it needs two GPUs; this machine has {setting.gpus}"


def _decided(requested: MeasuredVariant) -> Verdict:
    refused = [
        decision
        for decision in requested.decisions
        if decision.knob.endswith("tp_comm_overlap") and decision.effective is False
    ]
    off = requested.effective["model.tp_comm_overlap"] is False
    return Verdict(
        DECIDED,
        CONFIRMED if off and refused else NOT_CONFIRMED,
        refused[0].reason if refused else "no rule fired",
    )


def _same(observed: Observations, tolerance: float) -> Verdict:
    apart = distance(
        observed.tensors("tp-numbers", "tp2", "weight"),
        observed.tensors("tp-whole", "whole", "weight"),
    )
    shards = next(iter(observed.variants("tp-numbers")["tp2"].losses.values()))
    whole = next(iter(observed.variants("tp-whole")["whole"].losses.values()))
    losses = max(
        abs(a - b) / abs(b) if a and b else math.inf for a, b in zip(shards, whole, strict=True)
    )
    return Verdict(
        SAME,
        CONFIRMED if max(apart.relative, losses) <= tolerance else NOT_CONFIRMED,
        f"losses differ by at most {losses:.1e}, weights by at most {apart.relative:.1e} of their "
        f"norm; {tolerance:.0e} is allowed",
    )


def _userbuffers(timed: dict[str, MeasuredVariant], setting: Setting) -> Verdict:
    if setting.gpus < 2:
        return Verdict(USERBUFFERS, NOT_TESTABLE, _why_not(setting))
    requested = timed["asked"]
    kernels = sorted(
        {
            collective.traffic.name
            for report in requested.reports
            for collective in report.collectives
            if "userbuffers" in collective.traffic.name.lower()
        }
    )
    assert requested.profile is not None
    overlap = requested.profile.overlap or 0.0
    return Verdict(
        USERBUFFERS,
        CONFIRMED if kernels and overlap > 0.5 else NOT_CONFIRMED,
        f"{len(kernels)} userbuffers kernels; {100 * overlap:.0f} % of TP communication is hidden",
    )


SCENARIO = Scenario(
    name="tp",
    title="tensor parallelism: TP overlap does what the rules say",
    ranks=2,
    blocks=blocks,
    judge=judge,
)
