"""Measured over modelled time, from the shapes that were measured to others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import NamedTuple

NEIGHBOURS = 8
REACH = 3.0
"""Octaves, over all sizes together, that a measurement says something about."""

Place = tuple[float, ...]
"""Base-2 logarithms of sizes, so that a distance is in octaves."""


class Found(NamedTuple):
    """A ratio for a shape.

    Attributes:
        ratio: measured over modelled time.
        apart: octaves to the nearest measurement; 0 where this shape itself was measured.
    """

    ratio: float
    apart: float

    @property
    def measured(self) -> bool:
        """Whether a shape near enough was measured; else the ratio is the median of all."""
        return self.apart <= REACH


class Ratios:
    """Ratios by shape. Where a shape itself was measured, its own ratio counts.

    Otherwise the logarithms of the nearest `NEIGHBOURS` within `REACH` are averaged by the inverse
    square of their distance. The median of all takes part as if it were `REACH` away: what few and
    far measurements say is doubted. `benchmarks/plan_vs_operators.py` leaves out each measured
    operator in turn and tells how well it is foretold.

    Args:
        measured: places and ratios. The median counts where a place occurs several times.
    """

    def __init__(self, measured: Iterable[tuple[Place, float]]) -> None:
        at: dict[Place, list[float]] = {}
        for place, ratio in measured:
            at.setdefault(place, []).append(math.log(ratio))
        self._at: Mapping[Place, float] = {place: median(logs) for place, logs in at.items()}
        self._usual = median(self._at.values()) if at else 0.0
        self._known: dict[Place, Found] = {}

    def __len__(self) -> int:
        return len(self._at)

    def at(self, place: Place) -> Found:
        """The ratio at a place."""
        found = self._known.get(place)
        if found is None:
            found = self._known[place] = self._interpolated(place)
        return found

    def without(self, place: Place) -> Ratios:
        """The same without what was measured at a place."""
        return Ratios((p, math.exp(log)) for p, log in self._at.items() if p != place)

    def _interpolated(self, place: Place) -> Found:
        if place in self._at:
            return Found(math.exp(self._at[place]), 0.0)
        near = sorted((math.dist(place, each), log) for each, log in self._at.items())
        apart = near[0][0] if near else math.inf
        chosen = [one for one in near[:NEIGHBOURS] if one[0] <= REACH]
        chosen.append((REACH, self._usual))
        weights = [1 / distance**2 for distance, _ in chosen]
        logs = sum(weight * log for weight, (_, log) in zip(weights, chosen, strict=True))
        return Found(math.exp(logs / sum(weights)), apart)
