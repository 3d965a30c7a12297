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


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    Attributes:
        verdict: "unknown" where nothing can be said.
        holds: whether enough steps of both runs stand behind it.
        threshold: what the change must exceed, in nanoseconds.
        reasons: why it is unknown or does not hold, in sentences without their full stop.
    """

    verdict: Verdict
    holds: bool
    threshold: float
    reasons: tuple[str, ...] = ()


def judge(base: Side, new: Side) -> Judgement:
    """Whether the median step changed by more than the steps of either run differ by themselves."""
    change = new.step - base.step
    threshold = max(base.noise, new.noise, LEAST_CHANGE * base.step)
    reasons = _without_basis(base, new)
    if reasons:
        return Judgement("unknown", False, threshold, tuple(reasons))
    few = _few_steps(base, new)
    if few:
        threshold = max(threshold, FEW_STEPS_CHANGE * base.step)
    if abs(change) <= threshold:
        return Judgement("unknown" if few else "same", not few, threshold, tuple(few))
    return Judgement("slower" if change > 0 else "faster", not few, threshold, tuple(few))


def _without_basis(base: Side, new: Side) -> list[str]:
    """Why no verdict can rest on the steps; empty where one can."""
    reasons = [
        f"{side.name} marks no steps and repeats no sequence of kernels, and the length of a "
        "recording says nothing about speed"
        for side in (base, new)
        if side.steps_from is None
    ]
    reasons += [f"{side.name}: {doubt}" for side in (base, new) for doubt in side.doubts]
    few, many = sorted((base.kernels, new.kernels))
    repeated = "repetition" in (base.steps_from, new.steps_from)
    if not reasons and repeated and many > SAME_WORK * few:
        reasons.append(
            f"the steps are repeated sequences, and those of the two runs have {base.kernels:,.0f} "
            f"and {new.kernels:,.0f} kernels: they may not be the same work"
        )
    return reasons


def _few_steps(base: Side, new: Side) -> list[str]:
    sides = [s for s in (base, new) if s.recorded < LEAST_STEPS]
    if not sides:
        return []
    counts = " and ".join(
        f"{s.name} has {s.recorded} step{'s' if s.recorded > 1 else ''}" for s in sides
    )
    return [f"{counts}, and it takes {LEAST_STEPS} to tell a change from chance"]
