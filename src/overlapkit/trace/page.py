"""One self-contained page of a report: no network, no script, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from overlapkit.trace.compare import TITLES
from overlapkit.trace.compare_render import headline
from overlapkit.trace.files import writing
from overlapkit.trace.render import ms, pct, setting, size
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


def write_whole(target: str, text: str) -> None:
    """Write a page whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    with writing(target, "--html") as stream:
        stream.write(text.encode("utf-8", "replace"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("overlapkit.trace", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ms=ms, pct=pct, setting=setting, size=size)
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(parts=PARTS, titles=TITLES, **values)


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
    longest = max((row["step_us"] for _, row in rows), default=0.0) or 1.0
    return _render(
        "trace.html",
        document=document,
        bars=rows,
        longest=longest,
        rank=ranks[slowest],
        timeline=timelines[slowest],
    )


def compare_page(document: dict[str, Any]) -> str:
    """The page of `overlapkit compare`: both steps as bars, what moved, decisions."""
    sides = [
        (
            side,
            document[side]["name"],
            {f"{part['part']}_us": part[f"{side}_us"] for part in document["parts"]},
            document[side]["step_us"],
        )
        for side in ("base", "new")
    ]
    largest = max((abs(part["change_us"]) for part in document["parts"]), default=0.0) or 1.0
    return _render(
        "compare.html",
        document=document,
        headline=headline(document),
        sides=sides,
        longest=max(side[3] for side in sides) or 1.0,
        largest=largest,
    )
