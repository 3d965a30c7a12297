"""Data parallelism: gradients reduced during the backward, parameters gathered in the forward."""

from __future__ import annotations

from statistics import median

from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    DISTRIBUTED_OPTIMIZER,
    NO_OVERLAP,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    identical,
    layered,
    one_microbatch,
    variant,
)
from overlapkit.lab.timing import exposes_less, shorter, timed

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

SHORTER = "Overlapping gradient reduction and parameter gather shortens the step."
EXPOSED = "With both overlaps, less data-parallel communication is exposed than without."
SAME = "Overlap does not change the results: losses and weights are identical, bit for bit."
WITHIN = 0.1
"""Share of a step by which the profiler may lengthen one variant's steps more than another's."""

AGREE = "The profiles explain the change in step time that the clock measures."


def blocks(setting: Setting) -> tuple[Block, ...]:
    """No overlap, gradient reduction, and gradient reduction with parameter gather."""
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


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """Step time, exposed communication, results, and whether clock and profile agree."""
    variants = list(observed.variants("dp").values())
    off, _, both = variants
    same = identical(variants, SAME)
    if setting.shaped:
        hides = exposes_less(variants, EXPOSED, "DP")
        return [shorter(off, both, SHORTER), agree(off, both, AGREE), hides, same]
    unshaped = "the ranks communicate through memory, which is too fast to be worth hiding"
    return [*(Verdict(claim, NOT_TESTABLE, unshaped) for claim in (SHORTER, EXPOSED)), same]


def agree(off: MeasuredVariant, on: MeasuredVariant, claim: str) -> Verdict:
    """Whether profile and clock show the same change in step time, within their spreads.

    The clock's steps are those directly before the profiled ones.
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
        f"the spreads add up to {noise * 1e3:.0f} ms"
    )
    if noise >= abs(clock):
        return Verdict(claim, NOT_TESTABLE, f"the change is within the spreads: {evidence}")
    apart = abs(clock - profile)
    return timed(
        claim,
        evidence,
        (off, on),
        holds=apart <= noise,
        # The profiler makes steps longer, and not all variants' by the same time.
        refuted=apart > noise + WITHIN * off.step,
    )


SCENARIO = Scenario(
    name="dp",
    title="data parallelism: gradient reduction and parameter gather, overlapped with compute",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
