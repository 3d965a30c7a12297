"""A user's own configuration, against the same without overlap."""

from __future__ import annotations

from overlapkit.lab.measurements import Measured, Seen
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    CONFIRMED,
    NO_OVERLAP,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Verdict,
    exposes_less,
    identical,
    variant,
)

IN_EFFECT = "All the overlap that the configuration asks for is in effect on these ranks."
EXPOSED = "It exposes less communication than the same without overlap."
SAME = "The overlap changes no number."


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


def judge(seen: Seen, setting: Setting) -> list[Verdict]:
    """What is in effect, what it hides, and the numbers."""
    off, on = seen.variants("config").values()
    failed = next((one for one in (on, off) if one.error), None)
    if failed is not None:
        return [Verdict(IN_EFFECT, NOT_CONFIRMED, f"{failed.name}: {failed.error}")]
    changed = setting.user.changed if setting.user else ()
    scaled = Verdict(
        "It was trained as written.",
        NOT_TESTABLE if changed else CONFIRMED,
        "; ".join(changed) or "nothing was changed",
    )
    return [scaled, _in_effect(on), _exposed(off, on, setting), identical([off, on], SAME)]


def _in_effect(on: Measured) -> Verdict:
    refused = [d for d in on.decisions if d.outcome in ("refused", "error")]
    return Verdict(
        IN_EFFECT,
        NOT_CONFIRMED if refused else CONFIRMED,
        "; ".join(f"{d.knob}: {d.reason}" for d in refused) or "no rule refused anything",
    )


def _exposed(off: Measured, on: Measured, setting: Setting) -> Verdict:
    if off.profile is None or on.profile is None:
        return Verdict(EXPOSED, NOT_TESTABLE, "nothing was profiled")
    if not setting.shaped:
        return Verdict(EXPOSED, NOT_TESTABLE, "the link between the ranks is memory")
    return exposes_less([off, on], EXPOSED)


SCENARIO = Scenario(
    name="config",
    title="your configuration against the same without overlap",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
