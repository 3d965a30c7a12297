"""Which steps are much longer than the others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

LONGER = 1.1
"""Ratio to the median from which a step is longer than the others."""


def longer_than_others(lengths: Sequence[float]) -> list[int]:
    """The indices of steps that are longer than the median by more than they differ elsewhere.

    Args:
        lengths: of the steps, in any unit.
    """
    if not lengths:
        return []
    usual = median(lengths)
    spread = median(abs(length - usual) for length in lengths)
    return [
        index
        for index, length in enumerate(lengths)
        if length > LONGER * usual and length - usual > 3 * spread
    ]
