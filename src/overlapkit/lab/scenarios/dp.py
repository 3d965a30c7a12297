"""Data parallelism: gradients reduced under the backward, parameters gathered under the forward."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from overlapkit.lab.job import Block
from overlapkit.lab.measured import Measured, Seen
from overlapkit.lab.scenario import (
    CONFIRMED,
    DISTRIBUTED_OPTIMIZER,
    NO_OVERLAP,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    identical,
    layered,
    one_microbatch,
    shorter,
    variant,
)

GRADIENTS: Settings = {
    "comm_overlap": {
        "tp_comm_overlap": False,
        "overlap_grad_reduce": True,
        "overlap_param_gather": False,
        "bucket_size": "auto",
    }
}
BOTH: Settings = {
    "comm_overlap": {
        "tp_comm_overlap": False,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "bucket_size": "auto",
    }
}

SHORTER = "Overlapping both makes the step shorter."
EXPOSED = "Less data-parallel communication is exposed with each overlap."
SAME = "The overlap changes no number: losses and weights stay the same, bit by bit."
AGREE = "The profiles account for the change of the step that the clock shows."


def blocks(setting: Setting) -> tuple[Block, ...]:
    """Off, gradients, gradients and parameters."""
    rounds, steps = setting.turns(3, 3)
    ranks = setting.ranks or 2
    common = layered(DISTRIBUTED_OPTIMIZER, one_microbatch(setting, ranks))
    return (
        Block(
            name="dp",
            ranks=ranks,
            variants=(
                variant("off", setting, common, NO_OVERLAP),
                variant("grad-reduce", setting, common, GRADIENTS),
                variant("grad-reduce+param-gather", setting, common, BOTH),
            ),
            rounds=rounds,
            steps=steps,
            link_of="off",
        ),
    )


def judge(seen: Seen, setting: Setting) -> list[Verdict]:
    """The step, the exposed communication, the numbers, and whether clock and profile agree."""
    variants = list(seen.variants("dp").values())
    off, _, both = variants
    same = identical(variants, SAME)
    if setting.shaped:
        hides = hidden(variants, EXPOSED)
        return [shorter(off, both, SHORTER), agree(off, both, AGREE), hides, same]
    unshaped = "the link between the ranks is memory, too fast to be worth hiding"
    return [*(Verdict(claim, NOT_TESTABLE, unshaped) for claim in (SHORTER, EXPOSED)), same]


def hidden(variants: list[Measured], claim: str, dimension: str = "DP") -> Verdict:
    """Whether each variant exposes less of a dimension's communication than the one before."""
    exposed = []
    for one in variants:
        assert one.profile is not None
        exposed.append(one.profile.by_dimension.get(dimension, (0.0, 0.0))[1])
    falls = all(later < earlier for earlier, later in pairwise(exposed))
    shown = " -> ".join(f"{seconds * 1e3:.0f}" for seconds in exposed)
    return Verdict(
        claim,
        CONFIRMED if falls else NOT_CONFIRMED,
        f"{shown} ms a step exposed ({', '.join(one.name for one in variants)})",
    )


def agree(off: Measured, on: Measured, claim: str) -> Verdict:
    """Whether profile and clock tell the same change of the step, within what both vary by.

    The clock's steps are those right before the profiled ones.
    """
    assert off.profile is not None
    assert on.profile is not None
    clock = median(on.last_turn) - median(off.last_turn)
    profile = on.profile.step - off.profile.step
    parts = {
        "exposed": on.profile.exposed - off.profile.exposed,
        "compute": on.profile.compute - off.profile.compute,
        "other": on.profile.other - off.profile.other,
    }
    noise = off.profile.step_spread + on.profile.step_spread
    noise += sum((max(one.last_turn) - min(one.last_turn)) / 2 for one in (off, on))
    shown = ", ".join(f"{name} {seconds * 1e3:+.0f}" for name, seconds in parts.items())
    return Verdict(
        claim,
        CONFIRMED if abs(clock - profile) <= noise else NOT_CONFIRMED,
        f"clock {clock * 1e3:+.0f} ms, profile {profile * 1e3:+.0f} ms ({shown}); "
        f"they vary by {noise * 1e3:.0f} ms",
    )


SCENARIO = Scenario(
    name="dp",
    title="data parallelism: reduce gradients under the backward, gather under the forward",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
