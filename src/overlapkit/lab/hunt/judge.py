"""Compares a case with the unpartitioned model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from overlapkit.lab.full_tensors import Tensors, distance
from overlapkit.lab.hunt.batch import Trained, kind_of
from overlapkit.lab.hunt.case import Case
from overlapkit.lab.measurements import MeasuredVariant, mean_losses

FULL, BF16 = "fp32", "bf16"

TOLERANCE = 2e-5
"""Of a tensor's norm, for sums in fp32 in another order: as in the scenario grid, with a margin for
clipped gradients, experts and more steps."""

LOSS_TOLERANCE = 1e-5
"""Of a loss, in fp32."""

FACTOR = 4.0
"""How much farther from the unpartitioned fp32 model a partitioned bf16 run may be than the
unpartitioned bf16 model is."""

Kind = Literal["equal", "different", "refused", "crash", "hang"]


@dataclass(frozen=True)
class Reference:
    """What the unpartitioned model ended with.

    Attributes:
        weights: its tensors.
        losses, evaluations: of its steps and evaluations.
    """

    weights: Tensors
    losses: list[float | None]
    evaluations: list[float | None]


@dataclass(frozen=True)
class Fate:
    """What became of a case.

    Attributes:
        kind: "equal" to the unpartitioned model, "different" from it, or the trouble it was in.
        what: which tensors differ and how far, or the error.
        relative: the largest distance of a tensor, as a share of its norm; 0 with trouble.
        lines: of the traceback, where there is one.
    """

    kind: Kind
    what: str = ""
    relative: float = 0.0
    lines: tuple[str, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether it is a finding."""
        return self.kind != "equal"

    @property
    def symptom(self) -> tuple[str, str]:
        """Equal for two cases that show the same."""
        detail = "" if self.kind in ("different", "equal", "hang") else kind_of(self.what)
        return self.kind, detail


def troubled(found: Trained) -> Fate:
    """The fate of a case that was not trained."""
    assert found.trouble is not None
    return Fate(found.trouble, found.message, lines=found.lines)


def reference_of(measured: MeasuredVariant, weights: Tensors) -> Reference:
    """What to compare with."""
    return Reference(weights, mean_losses(measured.losses), mean_losses(measured.evaluations))


def compared(
    case: Case, measured: MeasuredVariant, weights: Tensors, references: Mapping[str, Reference]
) -> Fate:
    """The fate of a case that was trained.

    Args:
        case: its features.
        measured: its ranks' results.
        weights: its final weights, assembled.
        references: the unpartitioned model by its precision, `FULL` and, for a case in bf16,
            `BF16`.
    """
    if measured.unrestored:
        names = ", ".join(measured.unrestored[:3])
        return Fate("different", f"not as before the checkpoint was read back: {names}")
    same = references[FULL if case.precision == "fp32" else BF16]
    ours = reference_of(measured, weights)
    try:
        apart = distance(weights, same.weights)
    except ValueError as error:
        return Fate("different", str(error), math.inf)
    allowed = TOLERANCE if case.reorders else 0.0
    shown = (
        f"{apart.differing} of {apart.tensors} tensors differ, at most by {apart.relative:.1e} of "
        f"the norm ({apart.worst})"
    )
    if case.precision != "fp32" and case.reorders:
        own = distance(same.weights, references[FULL].weights).relative
        apart = distance(weights, references[FULL].weights)
        allowed = FACTOR * own
        shown = (
            f"{apart.relative:.1e} of the norm from the model in fp32 ({apart.worst}); "
            f"unpartitioned, the model in bf16 is {own:.1e} from it"
        )
    if apart.relative > allowed:
        return Fate("different", shown, apart.relative)
    loss_tolerance = LOSS_TOLERANCE if case.precision == "fp32" else 0.02
    for name, values, theirs in (
        ("loss", ours.losses, same.losses),
        ("loss of evaluation", ours.evaluations, same.evaluations),
    ):
        for step, (ours_of, of) in enumerate(zip(values, theirs, strict=False), 1):
            if not _close(ours_of, of, loss_tolerance):
                text = f"{name} {step} is {ours_of}, unpartitioned {of}"
                return Fate("different", text, apart.relative)
    return Fate("equal", shown, apart.relative)


def _close(value: float | None, of: float | None, tolerance: float) -> bool:
    if value is None or of is None:
        return value is of
    return abs(value - of) <= tolerance * max(abs(of), 1e-3)
