"""Whether numbers are the unpartitioned model's, as far as rounding lets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from overlapkit.lab.full_tensors import Tensors, relatives
from overlapkit.lab.scenario import TOLERANCE

FACTOR = 4.0
"""How much farther from the fp32 model than the unpartitioned model in the same half precision."""

HALF_UNIT = 2.0**-9
"""Unit roundoff of bf16: what is nearer to the fp32 model is as near as it can be."""

VAGUE = 0.1
"""Of a tensor's norm: where rounding alone moves it as far, a wrong number can look like it."""

Losses = Sequence[float | None]


@dataclass(frozen=True)
class Apart:
    """How far tensors are from the unpartitioned model's.

    Attributes:
        relative: tensor to ||a - b|| / ||b||, with b that of the model in fp32, or in the run's own
            precision where no bit may differ; only those that differ.
        wrong: of those, the ones that are farther than rounding explains.
        tensors: compared.
        vague: tensors of which half precision says little: the unpartitioned model's in it are
            farther from those in fp32 than `VAGUE`.
    """

    relative: dict[str, float]
    wrong: tuple[str, ...]
    tensors: int
    vague: int = 0

    @property
    def largest(self) -> float:
        """Of `relative`; 0 where no tensor differs."""
        return max(self.relative.values(), default=0.0)

    @property
    def worst(self) -> list[str]:
        """The wrong tensors, the farthest first."""
        return sorted(self.wrong, key=lambda name: -self.relative[name])


def tensors_apart(found: Tensors, whole: Tensors, half: Tensors | None, *, exact: bool) -> Apart:
    """Tensors of a run beside those of the unpartitioned model.

    Args:
        found: the run's.
        whole: the unpartitioned model's in fp32.
        half: the unpartitioned model's in the run's own half precision; None for a run in fp32.
        exact: whether the run adds in the same order, so that no bit may differ.

    Raises:
        ValueError: names or shapes differ.
    """
    if exact:
        relative = relatives(found, whole if half is None else half)
        return Apart(relative, tuple(relative), len(whole))
    relative = relatives(found, whole)
    limits = dict.fromkeys(relative, TOLERANCE)
    vague = 0
    if half is not None:
        own = relatives(half, whole)
        vague = sum(far > VAGUE for far in own.values())
        limits = {name: FACTOR * max(own.get(name, 0.0), HALF_UNIT) for name in relative}
    wrong = tuple(name for name, far in relative.items() if far > limits[name])
    return Apart(relative, wrong, len(whole), vague)


def losses_apart(
    name: str, found: Losses, whole: Losses, half: Losses | None, *, exact: bool
) -> tuple[float, list[str]]:
    """The largest relative distance of a loss, and in words which losses are too far apart.

    Args:
        name: what they are the losses of: "step" or "evaluation".
        found, whole, half, exact: as for `tensors_apart`; None in them: a loss is not finite.
    """
    allowed = TOLERANCE
    if exact:
        allowed, whole = 0.0, whole if half is None else half
    elif half is not None:
        own = [far(a, b) for a, b in zip(half, whole, strict=False)]
        allowed = FACTOR * max(*own, HALF_UNIT) if own else HALF_UNIT
    largest, wrong = 0.0, []
    for number, (one, other) in enumerate(zip(found, whole, strict=False), start=1):
        apart = far(one, other)
        largest = max(largest, apart)
        if apart > allowed:
            wrong.append(f"the loss of {name} {number}: {_shown(one)} instead of {_shown(other)}")
    if len(found) != len(whole):
        wrong.append(f"{len(found)} losses of {name}s instead of {len(whole)}")
    return largest, wrong


def far(one: float | None, other: float | None) -> float:
    """Relative distance of two losses; infinite where one alone is not finite."""
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(one - other) / (abs(other) or 1.0)


def _shown(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.6f}"
