"""Data parallelism: gradients reduced under the backward, parameters gathered under the forward."""

from __future__ import annotations

from statistics import median

from overlapkit.lab.measurements import Measured, Seen
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    DISTRIBUTED_OPTIMIZER,
    NO_OVERLAP,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    exposes_less,
    identical,
    layered,
    one_microbatch,
    shorter,
    timed,
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
        hides = exposes_less(variants, EXPOSED, "DP")
        return [shorter(off, both, SHORTER), agree(off, both, AGREE), hides, same]
    unshaped = "the link between the ranks is memory, too fast to be worth hiding"
    return [*(Verdict(claim, NOT_TESTABLE, unshaped) for claim in (SHORTER, EXPOSED)), same]


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
    evidence = (
        f"clock {clock * 1e3:+.0f} ms, profile {profile * 1e3:+.0f} ms ({shown}); "
        f"they vary by {noise * 1e3:.0f} ms"
    )
    if noise >= abs(clock):
        return Verdict(claim, NOT_TESTABLE, f"the change is within what both vary by: {evidence}")
    return timed(claim, abs(clock - profile) <= noise, evidence, (off, on))


SCENARIO = Scenario(
    name="dp",
    title="data parallelism: reduce gradients under the backward, gather under the forward",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
