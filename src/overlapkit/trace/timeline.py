"""The spans of one step for a picture, coarse enough for a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from overlapkit.trace.intervals import Spans, both, union
from overlapkit.trace.measure.step_times import WorkSpans
from overlapkit.trace.read.recorded import Window

RESOLUTION = 1600
"""Columns of a picture: spans closer together than one column are drawn as one."""


@dataclass(frozen=True)
class Timeline:
    """Rows of spans in one window, in nanoseconds from its start.

    Attributes:
        name: the step's name.
        start: start of the window, on the profiler's clock.
        length: length of the window.
        rows: label, kind ("compute", "comm", "exposed", "memory") and spans, top to bottom.
    """

    name: str
    start: int
    length: int
    rows: list[tuple[str, str, list[tuple[int, int]]]]


def timeline(m: WorkSpans, window: Window) -> Timeline:
    """Compute, communication by dimension with its exposed part, and memory in a window."""
    rows = [("compute", "compute", _coarse(m.compute, window))]
    for dimension, spans in m.dimension_comm.items():
        rows.append((dimension, "comm", _coarse(spans, window)))
        rows.append(
            (f"{dimension} exposed", "exposed", _coarse(m.dimension_exposed[dimension], window))
        )
    if len(m.memory):
        rows.append(("memory", "memory", _coarse(m.memory, window)))
    return Timeline(window.name, window.start, window.end - window.start, rows)


def _coarse(spans: Spans, window: Window) -> list[tuple[int, int]]:
    start, end = (np.asarray([at], np.int64) for at in (window.start, window.end))
    inside = both(spans, union(start, end))
    if not len(inside):
        return []
    grain = max(1, (window.end - window.start) // RESOLUTION)
    start = inside.start - window.start
    end = inside.end - window.start
    if len(start) > RESOLUTION:
        merged = union(start // grain * grain, -(-end // grain) * grain)
        start, end = merged.start, np.minimum(merged.end, window.end - window.start)
    return list(zip(start.tolist(), end.tolist(), strict=True))
