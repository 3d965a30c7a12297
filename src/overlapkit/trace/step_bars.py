"""Steps as bars of their exclusive parts, for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlapkit.output.numbers import ms_of_us
from overlapkit.output.svg import Piece, stacked
from overlapkit.trace.measure.step_times import PARTS, Part
from overlapkit.trace.text import PART_TITLES

KINDS: dict[Part, str] = {
    "compute": "compute",
    "exposed_comm": "exposed",
    "exposed_memory": "memory",
    "idle": "idle",
}
"""The colour class of each part."""

KEY = [(KINDS[part], PART_TITLES[part]) for part in PARTS]
"""Colour classes and what they mean, for the key below the bars."""


@dataclass(frozen=True)
class StepTime:
    """A step's length and its exclusive parts, in microseconds."""

    label: str
    step_us: float
    parts: Mapping[Part, float]


def step_bars(steps: Sequence[StepTime]) -> list[tuple[str, list[Piece], str]]:
    """The steps as bars on one scale: for each its label, its pieces, and its length as text."""
    longest = max((step.step_us for step in steps), default=0.0)
    return [
        (
            step.label,
            stacked(
                [
                    (KINDS[part], f"{PART_TITLES[part]} {ms_of_us(us)} ms", us)
                    for part, us in step.parts.items()
                ],
                longest,
            ),
            f"{ms_of_us(step.step_us)} ms",
        )
        for step in steps
    ]
