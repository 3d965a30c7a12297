"""Whether one run is slower than another, as far as their steps can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from overlapkit.trace.compare.side import LEAST_STEPS, Side

Verdict = Literal["slower", "faster", "same", "unknown"]

LEAST_CHANGE = 0.01
"""Share of the base step that a change must exceed: two runs of one job on other nodes, or at other
temperatures, differ by as much, whatever the spread within each."""

FEW_STEPS_CHANGE = 0.1
"""The same where a run has too few steps for a spread."""

SAME_WORK = 1.2
"""Ratio of kernels per step up to which repeated sequences of two runs are taken for the same
work."""


ONE_BATCH = 0.8
"""Share of an engine's iterations that must be of one batch, for their median to be of it."""


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    Attributes:
        verdict: "unknown" where nothing can be said.
        holds: whether enough steps of both runs stand behind it.
        threshold: what the change must exceed, in nanoseconds.
        reasons: why it is unknown or does not hold, in sentences without their full stop.
        by_spread: whether the threshold is what the steps differ by; otherwise it is the least
            share of the base step that counts as a change.
    """

    verdict: Verdict
    holds: bool
    threshold: float
    reasons: tuple[str, ...] = ()
    by_spread: bool = True


def judge(base: Side, new: Side) -> Judgement:
    """Whether the median step changed by more than the steps of either run differ by themselves."""
    change = new.step - base.step
    reasons = _without_basis(base, new)
    few = [] if reasons else _few_steps(base, new)
    noise = max(base.noise, new.noise)
    least = (FEW_STEPS_CHANGE if few else LEAST_CHANGE) * base.step
    threshold, by_spread = max(noise, least), noise >= least

    def judged(verdict: Verdict) -> Judgement:
        because = (*reasons, *few)
        return Judgement(verdict, not because, threshold, because, by_spread)

    if reasons:
        return judged("unknown")
    if abs(change) <= threshold:
        return judged("unknown" if few else "same")
    return judged("slower" if change > 0 else "faster")


def _without_basis(base: Side, new: Side) -> list[str]:
    """Why no verdict can rest on the steps; empty where one can."""
    reasons = [
        f"{side.name} marks no steps and repeats no sequence of kernels, and the length of a "
        "recording says nothing about speed"
        for side in (base, new)
        if side.steps_from is None
    ]
    reasons += [f"{side.name}: {doubt}" for side in (base, new) for doubt in side.doubts]
    reasons += _other_batches(base, new)
    few, many = sorted((base.kernels, new.kernels))
    repeated = {base.steps_from, new.steps_from} & {"repetition", "iterations"}
    if not reasons and repeated and many > SAME_WORK * few:
        reasons.append(
            f"the {base.unit}s of the two runs have {base.kernels:,.0f} and {new.kernels:,.0f} "
            "kernels: they may not be the same work"
        )
    return reasons


def _other_batches(base: Side, new: Side) -> list[str]:
    """Why iterations of an engine are not the same work; empty where they are."""
    if not (base.batches and new.batches):
        return []
    most = []
    for side in (base, new):
        ((batch, count),) = side.batches.most_common(1)
        if count < ONE_BATCH * side.batches.total():
            return [f"the iterations of {side.name} are of different batches"]
        most.append(batch)
    if most[0] == most[1]:
        return []
    return [f"the iterations are of different batches ({most[0]}; {most[1]})"]


def _few_steps(base: Side, new: Side) -> list[str]:
    sides = [s for s in (base, new) if s.recorded < LEAST_STEPS]
    if not sides:
        return []
    counts = " and ".join(
        f"{s.name} has {s.recorded} {s.unit}{'s' if s.recorded > 1 else ''}" for s in sides
    )
    return [f"{counts}, and it takes {LEAST_STEPS} to tell a change from chance"]
