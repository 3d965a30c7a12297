"""Whether the numbers of a run equal those of the unpartitioned model, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from overlapkit.lab.full_tensors import relatives
from overlapkit.lab.measurements import MeasuredVariant, Observations, mean_losses
from overlapkit.lab.scenario import TOLERANCE

FACTOR = 3.0
"""How much farther from the fp32 model than the unpartitioned model in the same half precision."""

HALF_UNIT = 2.0**-9
"""Unit roundoff of bf16: a tensor that is nearer to the fp32 model is as near as it can be."""

SHOWN = 3
"""Tensors that evidence names."""


@dataclass(frozen=True)
class StepApart:
    """How far a run is from the unpartitioned model after a step.

    Attributes:
        step: from 1.
        loss: the run's, the mean over its replicas; None where it is not finite.
        reference: the unpartitioned model's.
        relative: tensor to ||a - b|| / ||b||, with b the unpartitioned model's; only those that
            differ.
        wrong: of those, the ones that are farther than rounding explains.
        tensors: compared.
    """

    step: int
    loss: float | None
    reference: float | None
    relative: dict[str, float]
    wrong: tuple[str, ...]
    tensors: int

    @property
    def largest(self) -> float:
        """Of `relative`; 0 where no tensor differs."""
        return max(self.relative.values(), default=0.0)

    @property
    def worst(self) -> list[str]:
        """The wrong tensors, the farthest first."""
        return sorted(self.wrong, key=lambda name: -self.relative[name])


@dataclass(frozen=True)
class Compared:
    """A run compared with the unpartitioned model.

    Attributes:
        steps: each of them.
        losses: how far the losses of steps and evaluations are apart, relatively, at most.
        wrong_losses: which of them are farther apart than rounding explains.
        evaluations: number of evaluations.
        unrestored: tensors that a checkpoint did not bring back.
        mismatch: why the tensors cannot be compared; empty where they can.
    """

    steps: tuple[StepApart, ...]
    losses: float
    wrong_losses: tuple[str, ...]
    evaluations: int
    unrestored: tuple[str, ...] = ()
    mismatch: str = ""

    @property
    def equal(self) -> bool:
        """Whether all numbers are the unpartitioned model's, as far as rounding lets them."""
        wrong = any(each.wrong for each in self.steps)
        return not (wrong or self.wrong_losses or self.mismatch)

    @property
    def identical(self) -> bool:
        """Whether no bit of a weight or a loss differs."""
        return self.equal and not self.losses and not any(each.relative for each in self.steps)

    @property
    def first_wrong(self) -> StepApart | None:
        """The first step after which a tensor is wrong."""
        return next((each for each in self.steps if each.wrong), None)


@dataclass(frozen=True)
class Models:
    """Where the models to compare are.

    Attributes:
        observed: all measurements.
        whole: block and variant of the unpartitioned model in fp32.
        half: those of the unpartitioned model in the run's own half precision; None in fp32.
        exact: whether no sum is reordered, so that no bit may differ.
    """

    observed: Observations
    whole: tuple[str, str]
    half: tuple[str, str] | None
    exact: bool


def compare(models: Models, block: str, variant: str) -> Compared:
    """A variant compared with the unpartitioned model, after every step."""
    ours = models.observed.variants(block)[variant]
    whole = _measured(models, models.whole)
    half = None if models.half is None else _measured(models, models.half)
    apart, wrong_losses = _losses(ours, whole, half)
    steps = []
    mismatch = ""
    losses, reference = mean_losses(ours.losses), mean_losses((half or whole).losses)
    for step in range(1, len(losses) + 1):
        try:
            relative, wrong, tensors = _tensors(models, block, variant, step)
        except ValueError as error:
            mismatch = f"after step {step}: {error}"
            break
        pair = losses[step - 1], reference[step - 1]
        steps.append(StepApart(step, *pair, relative, wrong, tensors))
    return Compared(
        tuple(steps),
        apart,
        wrong_losses,
        len(mean_losses(ours.evaluations)),
        tuple(ours.unrestored),
        mismatch,
    )


def _measured(models: Models, place: tuple[str, str]) -> MeasuredVariant:
    return models.observed.variants(place[0])[place[1]]


def _tensors(
    models: Models, block: str, variant: str, step: int
) -> tuple[dict[str, float], tuple[str, ...], int]:
    """How far each tensor is from the unpartitioned model's, which are wrong, and their number."""
    found = models.observed.tensors(block, variant, "weight", step)
    whole = models.observed.tensors(*models.whole, "weight", step)
    relative = relatives(found, whole)
    if models.half is None:
        limit = 0.0 if models.exact else TOLERANCE
        wrong = tuple(name for name, far in relative.items() if far > limit)
    else:
        half = relatives(models.observed.tensors(*models.half, "weight", step), whole)
        wrong = tuple(
            name
            for name, far in relative.items()
            if far > FACTOR * max(half.get(name, 0.0), HALF_UNIT)
        )
    return relative, wrong, len(whole)


def _losses(
    ours: MeasuredVariant, whole: MeasuredVariant, half: MeasuredVariant | None
) -> tuple[float, tuple[str, ...]]:
    """The largest relative distance of a loss, and which losses are too far apart."""
    largest, wrong = 0.0, []
    for kind in ("losses", "evaluations"):
        found, exact = (mean_losses(getattr(each, kind)) for each in (ours, whole))
        allowed = TOLERANCE
        if half is not None:
            theirs = mean_losses(getattr(half, kind))
            own = [_far(a, b) for a, b in zip(theirs, exact, strict=False)]
            allowed = FACTOR * max(*own, HALF_UNIT) if own else HALF_UNIT
        name = "the loss of step" if kind == "losses" else "the loss of evaluation"
        for number, (one, other) in enumerate(zip(found, exact, strict=False), start=1):
            far = _far(one, other)
            largest = max(largest, far)
            if far > allowed:
                wrong.append(f"{name} {number}: {_shown(one)} instead of {_shown(other)}")
        if len(found) != len(exact):
            wrong.append(f"{len(found)} {kind} instead of {len(exact)}")
    return largest, tuple(wrong)


def _far(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(one - other) / (abs(other) or 1.0)


def _shown(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.6f}"


def equal_evidence(compared: Compared, *, half: bool) -> str:
    """What was compared, and how near the numbers are."""
    tensors = compared.steps[-1].tensors if compared.steps else 0
    what = f"{len(compared.steps)} steps, {compared.evaluations} evaluations, {tensors} tensors"
    if compared.identical:
        return f"{what}: no bit of a weight or a loss differs"
    largest = max((each.largest for each in compared.steps), default=0.0)
    near = (
        f"weights differ by at most {largest:.1e} of a tensor's norm, "
        f"losses by {compared.losses:.1e}"
    )
    if half:
        return (
            f"{what}: {near} from the model in fp32, no more than {FACTOR:g} times as much as the "
            "unpartitioned model in the same precision"
        )
    return f"{what}: {near}; {TOLERANCE:.0e} is allowed, since sums are added in another order"


def wrong_evidence(compared: Compared) -> str:
    """From which step, which tensors, and how far they are off."""
    parts = []
    first = compared.first_wrong
    if first is not None:
        last = compared.steps[-1]
        parts.append(
            f"from step {first.step} on: {len(first.wrong)} of {first.tensors} tensors are wrong, "
            f"{_up_to(first)} of their norm ({_named(first)})"
        )
        if last.step != first.step:
            parts.append(
                f"after step {last.step} {len(last.wrong)}, {_up_to(last)} ({_named(last)})"
            )
    if compared.mismatch:
        parts.append(compared.mismatch)
    if compared.wrong_losses:
        more = len(compared.wrong_losses) - 1
        parts.append(compared.wrong_losses[0] + (f", and {more} more" if more else ""))
    return "; ".join(parts)


def _up_to(step: StepApart) -> str:
    return f"by up to {_number(step.largest)}"


def _number(relative: float) -> str:
    return f"{relative:.1e}" if math.isfinite(relative) else "without bound (not finite)"


def _named(step: StepApart) -> str:
    worst = step.worst
    more = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
    return ", ".join(f"{name} {_number(step.relative[name])}" for name in worst[:SHOWN]) + more
