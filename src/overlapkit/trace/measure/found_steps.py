"""Where the steps of a profile are from: its ranges, an engine's iterations, or what repeats."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from overlapkit.output.numbers import ms_of_us, us_of_ns
from overlapkit.trace.measure.repetition import repetition
from overlapkit.trace.measure.units import StepsFrom
from overlapkit.trace.read.device_work import Work
from overlapkit.trace.read.host.engines import batch_of
from overlapkit.trace.read.recorded import Window

_KINDS = 4
"""Kinds of iterations that a note names."""


def find_steps(work: Work) -> tuple[StepsFrom | None, int]:
    """Where the steps of a profile are from, and the kernels of each that repeats.

    Where no range marks them, an engine's iterations take their place, or what repeats clearly.
    """
    if work.steps:
        return "ranges", 0
    if work.iterations:
        work.steps = work.iterations
        work.warnings += _mixed(work.iterations)
        return "iterations", 0
    found = repetition(work) if work.source != "cpu" else None
    if found is None:
        return None, 0
    work.steps = found.windows
    return "repetition", found.kernels


def _mixed(iterations: Sequence[Window]) -> list[str]:
    """A note where iterations are of batches whose lengths have no common median."""
    lengths: dict[str, list[int]] = {}
    for window in iterations:
        kind = (batch_of(window.name) or "").partition(",")[0]
        lengths.setdefault(kind, []).append(window.end - window.start)
    if len(lengths) < 2:
        return []
    listed = ", ".join(
        f"{len(of)} x {kind or 'unknown'} (median {ms_of_us(us_of_ns(statistics.median(of)))} ms)"
        for kind, of in sorted(lengths.items(), key=lambda item: -len(item[1]))[:_KINDS]
    )
    more = f" and {len(lengths) - _KINDS} others" if len(lengths) > _KINDS else ""
    return [
        f"the iterations are of different batches: {listed}{more}; other medians, and what "
        "diagnoses cost, are of all"
    ]
