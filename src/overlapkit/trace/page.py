"""One self-contained page of a report: no network, no script, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overlapkit.output.html import environment
from overlapkit.output.numbers import ms_of_us
from overlapkit.output.svg import Piece, stacked
from overlapkit.trace.document import TITLES
from overlapkit.trace.timeline import Timeline

PARTS = (
    ("compute_us", "compute", "compute"),
    ("exposed_comm_us", "exposed", "exposed communication"),
    ("exposed_memory_us", "memory", "exposed memory"),
    ("idle_us", "idle", "idle"),
)
"""Field, colour class and title of the exclusive parts, in the order in which they are stacked."""

BARS = 24
"""Bars of a chart: the first steps of each rank beyond that are left to the table."""


def _render(template: str, **values: Any) -> str:
    templates = environment("overlapkit.trace")
    kinds = [(kind, title) for _, kind, title in PARTS]
    return templates.get_template(template).render(kinds=kinds, titles=TITLES, **values)


def _bars(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, list[Piece], str]]:
    """Named windows as bars of their exclusive parts: label, pieces, length."""
    longest = max((row["step_us"] for _, row in rows), default=0.0)
    return [
        (
            label,
            stacked(
                [
                    (kind, f"{title} {ms_of_us(row[field])} ms", row[field])
                    for field, kind, title in PARTS
                ],
                longest,
            ),
            f"{ms_of_us(row['step_us'])} ms",
        )
        for label, row in rows
    ]


def trace_page(document: dict[str, Any], timelines: Sequence[Timeline | None]) -> str:
    """The page of `overlapkit trace`: bars per step, dimensions, a timeline, tables, diagnoses."""
    ranks = document["ranks"]
    slowest = max(range(len(ranks)), key=lambda i: ranks[i]["median"]["step_us"])
    rows = [
        (f"rank {rank['rank']}, {row['name']}", row)
        for rank in ranks
        for row in (rank["steps"] or [rank["whole"]])
    ]
    if len(rows) > BARS:
        rows = [(f"rank {rank['rank']}, median", rank["median"]) for rank in ranks]
    return _render(
        "trace.html",
        document=document,
        bars=_bars(rows),
        rank=ranks[slowest],
        timeline=timelines[slowest],
    )
