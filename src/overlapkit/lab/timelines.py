"""Timelines of a block's variants on one axis, so that the difference can be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlapkit.lab.measurements import MeasuredVariant
from overlapkit.output.svg import WIDTH, ticks
from overlapkit.trace.timeline import Timeline

Layer = tuple[str, list[tuple[int, int]]]

UNFOLDED = 8
"""Up to how many ranks of a pipeline are shown unfolded."""


@dataclass(frozen=True)
class Lane:
    """One row of a rank.

    Attributes:
        label: its caption.
        layers: colour class and spans, drawn over each other; in nanoseconds from `start`.
        start: where the rank's step begins on the axis, in nanoseconds.
        length: of the rank's step, in nanoseconds.
    """

    label: str
    layers: list[Layer]
    start: int
    length: int


@dataclass(frozen=True)
class Strip:
    """One variant: the lanes of each rank, shown and folded."""

    name: str
    shown: list[list[Lane]]
    folded: list[list[Lane]]


@dataclass(frozen=True)
class Picture:
    """Timelines of a block.

    Attributes:
        strips: its variants.
        width: length of the axis, in nanoseconds.
        ticks: places on the axis, from 0 to `WIDTH`, and their milliseconds.
        one_clock: whether the ranks of a pipeline are drawn by one clock, so that a rank's wait
            for another can be seen. None: there is no pipeline, and each rank begins at 0.
    """

    strips: list[Strip]
    width: int
    ticks: list[tuple[float, str]]
    one_clock: bool | None


def picture(variants: Mapping[str, MeasuredVariant]) -> Picture | None:
    """The timelines of variants that were profiled; None without any."""
    timelines = {
        name: found
        for name, variant in variants.items()
        if (found := [each.timeline for each in variant.reports if each.timeline is not None])
    }
    if not timelines:
        return None
    stages = [name for name in timelines if _stages(variants[name]) > 1]
    one_clock = all(_one_clock(timelines[name]) for name in stages)
    strips = [
        _strip(name, found, pipeline=name in stages, one_clock=one_clock)
        for name, found in timelines.items()
    ]
    width = max(
        lane.start + lane.length
        for strip in strips
        for rank in (*strip.shown, *strip.folded)
        for lane in rank
    )
    return Picture(strips, width, _ticks(width), one_clock if stages else None)


def _ticks(width: int) -> list[tuple[float, str]]:
    longest = width / 1e6
    return [
        (round(tick / longest * WIDTH, 1), f"{tick:g}")
        for tick in ticks(0, longest)
        if tick <= longest
    ]


def _one_clock(timelines: Sequence[Timeline]) -> bool:
    """Whether the ranks can have one clock: on one machine all are in the same step at once."""
    starts = [each.start for each in timelines]
    return max(starts) - min(starts) < min(each.length for each in timelines)


def _stages(variant: MeasuredVariant) -> int:
    return variant.ranks[0].layout.get("pp", 1)


def _strip(name: str, timelines: Sequence[Timeline], *, pipeline: bool, one_clock: bool) -> Strip:
    origin = min(each.start for each in timelines)
    together = pipeline and one_clock
    ranks = [
        _lanes(rank, each, each.start - origin if together else 0)
        for rank, each in enumerate(timelines)
    ]
    # Without a pipeline all ranks do the same at the same time.
    shown = UNFOLDED if pipeline else 1
    return Strip(name, ranks[:shown], ranks[shown:])


def _lanes(rank: int, timeline: Timeline, start: int) -> list[Lane]:
    """Compute, then each dimension's communication with its exposed part drawn over it."""
    rows: list[tuple[str, list[Layer]]] = []
    for label, kind, spans in timeline.rows:
        if kind == "exposed":
            rows[-1][1].append((kind, spans))
        else:
            rows.append((label, [(kind, spans)]))
    return [
        Lane(f"rank {rank}, {label}" if place == 0 else label, layers, start, timeline.length)
        for place, (label, layers) in enumerate(rows)
    ]
