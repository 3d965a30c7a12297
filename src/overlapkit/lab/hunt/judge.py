"""Compares a case with the unpartitioned model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from overlapkit.lab.agreement import losses_apart, tensors_apart
from overlapkit.lab.full_tensors import Tensors
from overlapkit.lab.hunt.batch import Trained, kind_of
from overlapkit.lab.hunt.case import Case
from overlapkit.lab.measurements import MeasuredVariant, mean_losses

FULL, BF16 = "fp32", "bf16"

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
    if measured.unsaved:
        return Fate("refused", measured.unsaved)
    exact = not case.reorders
    whole, half = references[FULL], references.get(BF16)
    try:
        apart = tensors_apart(
            weights, whole.weights, None if half is None else half.weights, exact=exact
        )
    except ValueError as error:
        return Fate("different", str(error), math.inf)
    worst = apart.worst or sorted(apart.relative, key=lambda name: -apart.relative[name])
    shown = (
        f"{len(apart.relative)} of {apart.tensors} tensors differ, {len(apart.wrong)} more than "
        f"rounding explains, at most by {apart.largest:.1e} of the norm ({', '.join(worst[:1])})"
    )
    if apart.wrong:
        return Fate("different", shown, apart.largest)
    ours = reference_of(measured, weights)
    for name in ("losses", "evaluations"):
        _, wrong = losses_apart(
            "step" if name == "losses" else "evaluation",
            getattr(ours, name),
            getattr(whole, name),
            None if half is None else getattr(half, name),
            exact=exact,
        )
        if wrong:
            return Fate("different", wrong[0], apart.largest)
    return Fate("equal", shown, apart.largest)
