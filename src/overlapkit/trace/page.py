"""The page of `overlapkit trace`: self-contained, no network, no script, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence

from overlapkit.output.html import environment
from overlapkit.trace import text
from overlapkit.trace.document import TraceDocument
from overlapkit.trace.heat import HOTTEST, heat_maps, longest_and_shortest
from overlapkit.trace.labels import label_of
from overlapkit.trace.measure.step_times import PARTS
from overlapkit.trace.rank_document import TraceMedian, TraceWindow
from overlapkit.trace.step_bars import KEY, StepTime, step_bars
from overlapkit.trace.timeline import Timeline

BARS = 24
"""Steps of all ranks up to which each is drawn; beyond, only the medians of ranks are."""


def trace_page(
    document: TraceDocument, timelines: Sequence[Timeline | None], number: int | None = None
) -> str:
    """Bars of the steps, dimensions, a timeline, tables, diagnoses.

    Args:
        document: the report.
        timelines: one step of each of its ranks, in the same order.
        number: the rank that is described in detail; None for the slowest.

    Raises:
        InputError: there is no such rank.
    """
    rank = document.detailed(number)
    steps = [
        _step_time(f"{label_of(each, document.ranks)}, {window.name}", window)
        for each in document.ranks
        for window in (each.steps or [each.whole])
    ]
    if len(steps) > BARS:
        steps = [
            _step_time(f"{label_of(each, document.ranks)}, median", each.median)
            for each in longest_and_shortest(document.ranks, rank)
        ]
    return (
        environment("overlapkit.trace")
        .get_template("trace.html")
        .render(
            document=document,
            text=text,
            bars=step_bars(steps),
            kinds=KEY,
            rank=rank,
            label=label_of(rank, document.ranks),
            label_of=label_of,
            heat=heat_maps(document),
            hottest=HOTTEST,
            timeline=timelines[document.ranks.index(rank)],
        )
    )


def _step_time(label: str, row: TraceWindow | TraceMedian) -> StepTime:
    return StepTime(label, row.step_us, {part: getattr(row, f"{part}_us") for part in PARTS})
