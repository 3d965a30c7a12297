"""Whether the numbers of a run equal those of the unpartitioned model, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from overlapkit.lab.agreement import FACTOR, VAGUE, Apart, losses_apart, tensors_apart
from overlapkit.lab.measurements import MeasuredVariant, Observations, mean_losses
from overlapkit.lab.scenario import CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE, TOLERANCE, Verdict

SHOWN = 3
"""Tensors that evidence names."""


@dataclass(frozen=True)
class StepApart:
    """How far a run is from the unpartitioned model after a step.

    Attributes:
        step: from 1.
        loss: the run's, the mean over its replicas; None where it is not finite.
        reference: the unpartitioned model's.
        apart: how far the tensors are.
    """

    step: int
    loss: float | None
    reference: float | None
    apart: Apart


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
        wrong = any(each.apart.wrong for each in self.steps)
        return not (wrong or self.wrong_losses or self.mismatch)

    @property
    def identical(self) -> bool:
        """Whether no bit of a weight or a loss differs."""
        return (
            self.equal and not self.losses and not any(each.apart.relative for each in self.steps)
        )

    @property
    def was_right(self) -> bool:
        """Whether it was right for at least a step, and then no longer."""
        first = self.first_wrong
        return first is not None and first.step > 1 and not self.mismatch

    @property
    def first_wrong(self) -> StepApart | None:
        """The first step after which a tensor is wrong."""
        return next((each for each in self.steps if each.apart.wrong), None)


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
    far, wrong_losses = _losses(ours, whole, half, models.exact)
    steps = []
    mismatch = ""
    losses, reference = mean_losses(ours.losses), mean_losses((half or whole).losses)
    for step in range(1, len(losses) + 1):
        try:
            apart = _tensors(models, block, variant, step)
        except ValueError as error:
            mismatch = f"after step {step}: {error}"
            break
        steps.append(StepApart(step, losses[step - 1], reference[step - 1], apart))
    return Compared(
        tuple(steps),
        far,
        wrong_losses,
        len(mean_losses(ours.evaluations)),
        tuple(ours.unrestored),
        mismatch,
    )


def _measured(models: Models, place: tuple[str, str]) -> MeasuredVariant:
    return models.observed.variants(place[0])[place[1]]


def _tensors(models: Models, block: str, variant: str, step: int) -> Apart:
    found = models.observed.tensors(block, variant, "weight", step)
    whole = models.observed.tensors(*models.whole, "weight", step)
    half = None
    if models.half is not None:
        half = models.observed.tensors(*models.half, "weight", step)
    return tensors_apart(found, whole, half, exact=models.exact)


def _losses(
    ours: MeasuredVariant, whole: MeasuredVariant, half: MeasuredVariant | None, exact: bool
) -> tuple[float, tuple[str, ...]]:
    """The largest relative distance of a loss, and which losses are too far apart."""
    largest: float = 0.0
    wrong: list[str] = []
    for name, kind in (("step", "losses"), ("evaluation", "evaluations")):
        found, full = (mean_losses(getattr(each, kind)) for each in (ours, whole))
        theirs = None if half is None else mean_losses(getattr(half, kind))
        apart, more = losses_apart(name, found, full, theirs, exact=exact)
        largest = max(largest, apart)
        wrong += more
    return largest, tuple(wrong)


def numbers_verdict(
    claim: str,
    compared: Compared,
    *,
    full: Compared | None = None,
    again: Compared | None = None,
    untrained: str = "",
) -> Verdict:
    """Whether a run's numbers are the unpartitioned model's.

    Args:
        claim: the verdict's.
        compared: the run.
        full: the same run in fp32; None for a run that is in fp32.
        again: a run with experts in fp32 on other data.
        untrained: why a run in half precision was not trained in fp32.
    """
    exact = full or compared
    wrong = [each for each in (exact, again) if each is not None and not each.equal]
    if again is not None and len(wrong) == 1 and wrong[0].was_right:
        right = exact if wrong[0] is again else again
        why = (
            f"on one part of the data, {wrong_evidence(wrong[0])}; on another part, "
            f"{equal_evidence(right, half=False)}: as where two experts' scores for a token are "
            "within rounding and the other one is chosen"
        )
        return Verdict(claim, NOT_TESTABLE, why)
    if wrong or not compared.equal:
        where = "in fp32, " if wrong and full is not None else ""
        return Verdict(claim, NOT_CONFIRMED, where + wrong_evidence((*wrong, compared)[0]))
    if full is not None:
        evidence = (
            f"in fp32, {equal_evidence(full, half=False)}; in its own precision, "
            f"{half_evidence(compared)}"
        )
    elif untrained:
        evidence = f"{equal_evidence(compared, half=True)}; in fp32 it is not trained: {untrained}"
    else:
        evidence = equal_evidence(compared, half=False)
    return Verdict(claim, CONFIRMED, evidence)


def equal_evidence(compared: Compared, *, half: bool) -> str:
    """What was compared, and how near the numbers are."""
    tensors = compared.steps[-1].apart.tensors if compared.steps else 0
    what = f"{len(compared.steps)} steps, {compared.evaluations} evaluations, {tensors} tensors"
    if compared.identical:
        return f"{what}: no bit of a weight or a loss differs"
    return f"{what}: {half_evidence(compared) if half else _full_evidence(compared)}"


def _full_evidence(compared: Compared) -> str:
    return f"{_near(compared)}; {TOLERANCE:.0e} is allowed, since sums are added in another order"


def half_evidence(compared: Compared) -> str:
    """How near a run in half precision is to the model in fp32."""
    if compared.identical:
        return "no bit of a weight or a loss differs"
    vague = max((each.apart.vague for each in compared.steps), default=0)
    less = f"; rounding alone moves {vague} of the tensors by more than {VAGUE:.0%}"
    return (
        f"{_near(compared)} from the model in fp32, no more than {FACTOR:g} times as much as the "
        f"unpartitioned model in the same precision{less if vague else ''}"
    )


def _near(compared: Compared) -> str:
    largest = max((each.apart.largest for each in compared.steps), default=0.0)
    return (
        f"weights differ by at most {largest:.1e} of a tensor's norm, losses by "
        f"{compared.losses:.1e}"
    )


def wrong_evidence(compared: Compared) -> str:
    """From which step, which tensors, and how far they are off."""
    parts = []
    first = compared.first_wrong
    if first is not None:
        last = compared.steps[-1]
        parts.append(
            f"from step {first.step} on: {len(first.apart.wrong)} of {first.apart.tensors} tensors "
            f"are wrong, {_up_to(first)} of their norm ({_named(first)})"
        )
        if last.step != first.step:
            parts.append(
                f"after step {last.step} {len(last.apart.wrong)}, {_up_to(last)} ({_named(last)})"
            )
    if compared.mismatch:
        parts.append(compared.mismatch)
    if compared.wrong_losses:
        more = len(compared.wrong_losses) - 1
        parts.append(compared.wrong_losses[0] + (f", and {more} more" if more else ""))
    return "; ".join(parts)


def _up_to(step: StepApart) -> str:
    return f"by up to {_number(step.apart.largest)}"


def _number(relative: float) -> str:
    return f"{relative:.1e}" if math.isfinite(relative) else "without bound (not finite)"


def _named(step: StepApart) -> str:
    worst = step.apart.worst
    more = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
    return (
        ", ".join(f"{name} {_number(step.apart.relative[name])}" for name in worst[:SHOWN]) + more
    )
