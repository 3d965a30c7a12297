"""Verdicts on claims about time, from measurements on a machine that may do other work.

A claim is judged only where enough turns of its variants were quiet. Then it is confirmed, or
refuted beyond what the measurements vary by, or neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from overlapkit.lab.measurements import MeasuredVariant
from overlapkit.lab.scenario import CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE, Verdict

QUIET_TURNS = 2
"""Turns of a variant that must have been quiet, where there were as many."""

BUSY = 0.2
"""Spread of a variant's quiet steps over their median; above it, they say nothing about time."""

LEAST_GAIN = 0.05
"""Share of a step: a measured gain that must be smaller than this refutes "a shorter step"."""

LEAST_HIDDEN = 0.2
"""Share of the exposed communication: hiding less than this refutes "less is exposed"."""


def timed(
    claim: str,
    evidence: str,
    variants: Iterable[MeasuredVariant],
    *,
    holds: bool,
    refuted: bool,
) -> Verdict:
    """A verdict on a claim about time.

    Args:
        claim: the statement that was tested.
        evidence: the figures that decide.
        variants: those that were measured for it.
        holds: the figures show it.
        refuted: they show the contrary, beyond what they vary by.
    """
    found = dict.fromkeys(why for one in variants if (why := _disturbance(one)))
    if found:
        return Verdict(claim, NOT_TESTABLE, f"{'; '.join(found)}; {evidence}")
    if holds:
        return Verdict(claim, CONFIRMED, evidence)
    if refuted:
        return Verdict(claim, NOT_CONFIRMED, evidence)
    return Verdict(claim, NOT_TESTABLE, f"the measurements vary too much to tell: {evidence}")


def _disturbance(one: MeasuredVariant) -> str | None:
    """Why a variant's times say nothing; None where they do."""
    if one.shares_cores:
        # Which communication a rank waits for is then not seen in any step's time.
        first = one.ranks[0]
        return (
            f"{len(one.ranks)} ranks share {first.cores} cores: while one rank waits, another one "
            "computes in its place"
        )
    turns, disturbed = one.turns, one.disturbed_turns
    if turns - disturbed < min(QUIET_TURNS, turns):
        return f"other programs disturbed {disturbed} of {turns} turns of {one.name}"
    if one.profile is not None and one.profile_disturbed:
        return f"other programs disturbed the profile of {one.name}"
    if one.spread > BUSY * one.step:
        return f"the steps of {one.name} vary by {100 * one.spread / one.step:.0f} %"
    return None


def shorter(off: MeasuredVariant, on: MeasuredVariant, claim: str) -> Verdict:
    """Whether `on` has a shorter step than `off`, by more than the spreads of both together.

    It is refuted where the gain, with both spreads added, stays below 5 % of the step.
    """
    gain, noise = off.step - on.step, off.spread + on.spread
    evidence = (
        f"median step {off.step * 1e3:.0f} -> {on.step * 1e3:.0f} ms, "
        f"{on.step / off.step:.2f} x; the two spreads add up to {noise * 1e3:.0f} ms"
    )
    return timed(
        claim,
        evidence,
        (off, on),
        holds=gain > noise,
        refuted=gain + noise < LEAST_GAIN * off.step,
    )


def exposes_less(
    variants: Sequence[MeasuredVariant], claim: str, dimension: str | None = None
) -> Verdict:
    """Whether the last variant exposes less communication than the first.

    The difference must exceed what the profiled steps of both vary by. It is refuted where, with
    that added, less than a fifth of the first variant's exposed communication would be hidden.
    Variants between the two are shown, and not judged.

    Args:
        variants: the first and the last are compared.
        claim: what is claimed; it must not claim more.
        dimension: only this dimension's communication; None for all.
    """
    profiles = [one.profile for one in variants if one.profile is not None]
    exposed = [
        p.exposed if dimension is None else p.by_dimension.get(dimension, (0.0, 0.0))[1]
        for p in profiles
    ]
    fall = exposed[0] - exposed[-1]
    noise = profiles[0].step_spread + profiles[-1].step_spread
    shown = " -> ".join(f"{seconds * 1e3:.0f}" for seconds in exposed)
    evidence = (
        f"exposed per step: {shown} ms ({', '.join(one.name for one in variants)}); "
        f"the profiled steps vary by {noise * 1e3:.0f} ms"
    )
    return timed(
        claim,
        evidence,
        (variants[0], variants[-1]),
        holds=fall > noise,
        refuted=fall + noise < LEAST_HIDDEN * exposed[0],
    )
