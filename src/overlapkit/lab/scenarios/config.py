"""A user's own configuration, compared with the same without overlap."""

from __future__ import annotations

from megatron.bridge.training.decisions import FINDINGS
from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    CONFIRMED,
    NO_OVERLAP,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Verdict,
    identical,
    variant,
)
from overlapkit.lab.timing import exposes_less

IN_EFFECT = "All overlap that the configuration requests is in effect on these ranks."
EXPOSED = "It exposes less communication than the same configuration without overlap."
SAME = "Overlap does not change the results."


def blocks(setting: Setting) -> tuple[Block, ...]:
    """Without overlap, and as configured."""
    rounds, steps = setting.turns(3, 3)
    user = setting.user
    assert user is not None
    return (
        Block(
            name="config",
            ranks=setting.ranks or user.ranks,
            variants=(
                variant("no-overlap", setting, user.settings, NO_OVERLAP),
                variant("as-configured", setting, user.settings),
            ),
            rounds=rounds,
            steps=steps,
            link_of="no-overlap",
        ),
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """What is in effect, what it hides, and the results."""
    off, on = observed.variants("config").values()
    failed = next((one for one in (on, off) if one.error), None)
    if failed is not None:
        return [Verdict(IN_EFFECT, NOT_CONFIRMED, f"{failed.name}: {failed.error}")]
    changed = setting.user.changed if setting.user else ()
    scaled = Verdict(
        "The configuration was trained as written.",
        NOT_TESTABLE if changed else CONFIRMED,
        "; ".join(changed) or "no setting was changed",
    )
    return [scaled, _in_effect(on), _exposed(off, on, setting), identical([off, on], SAME)]


def _in_effect(on: MeasuredVariant) -> Verdict:
    refused = [d for d in on.decisions if d.outcome in FINDINGS]
    return Verdict(
        IN_EFFECT,
        NOT_CONFIRMED if refused else CONFIRMED,
        "; ".join(f"{d.knob}: {d.reason}" for d in refused) or "no rule refused a setting",
    )


def _exposed(off: MeasuredVariant, on: MeasuredVariant, setting: Setting) -> Verdict:
    if off.profile is None or on.profile is None:
        return Verdict(EXPOSED, NOT_TESTABLE, "no step was profiled")
    if not setting.shaped:
        return Verdict(
            EXPOSED,
            NOT_TESTABLE,
            "the ranks communicate through memory, which is too fast to be worth hiding",
        )
    return exposes_less([off, on], EXPOSED)


SCENARIO = Scenario(
    name="config",
    title="your configuration, compared with the same without overlap",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
