"""One self-contained page of a run of the lab: no network, no script, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overlapkit.lab.document import Told
from overlapkit.lab.timelines import picture
from overlapkit.lab.wording import layout, outcomes, processor, story
from overlapkit.output.html import environment
from overlapkit.output.numbers import ms_of_ms
from overlapkit.output.printable import all_printable
from overlapkit.output.svg import WIDTH, Piece, stacked

PARTS = (
    ("compute_ms", "compute", "compute"),
    ("exposed_ms", "exposed", "exposed communication"),
    ("other_ms", "idle", "other"),
)
"""Field, colour class and name of the parts of a profiled step, in the order of their stacking."""

TIMELINE_KEY = (
    ("compute", "compute"),
    ("comm", "communication that compute hides"),
    ("exposed", "exposed communication"),
)

UNFOLDED = 12
"""Variants of a block without times that are shown at once."""


@dataclass(frozen=True)
class Bar:
    """A variant's step: its name, the parts that were profiled, marks and length in words."""

    label: str
    pieces: list[Piece]
    told: str
    marks: list[tuple[str, float, float]]


def lab_page(document: dict[str, Any], told: Sequence[Told]) -> str:
    """The page: claims and their evidence, and per block bars, timelines and a table.

    Args:
        document: what `overlapkit.lab.document.lab_json` made of `told`.
        told: the scenarios, whose profiles hold the timelines.
    """
    document = all_printable(document)
    pictures = [
        [picture(one.seen.blocks[block.name].variants) for block in one.blocks] for one in told
    ]
    return (
        environment(
            "overlapkit.lab",
            layout=layout,
            processor=processor,
        )
        .get_template("lab.html")
        .render(
            document=document | {"warnings": []},
            outcomes=outcomes(document["scenarios"]),
            stories=[story(scenario) for scenario in document["scenarios"]],
            bars=[[bars(block) for block in s["blocks"]] for s in document["scenarios"]],
            pictures=pictures,
            kinds=[(kind, title) for _, kind, title in PARTS],
            timeline_key=TIMELINE_KEY,
            unfolded=UNFOLDED,
        )
    )


def bars(block: dict[str, Any]) -> list[Bar]:
    """A block's timed variants as bars that share one scale.

    The parts are those under the profiler; marked are the ideal, and the median and spread of the
    steps that were timed without it.
    """
    timed = [variant for variant in block["variants"] if variant.get("step_ms") is not None]
    ends = [variant["step_ms"] + variant["spread_ms"] for variant in timed]
    ends += [variant["profile"]["step_ms"] for variant in timed if "profile" in variant]
    longest = max(*ends, block["ideal_ms"] or 0.0) if ends else 1.0

    def x(value: float) -> float:
        return round(min(max(value, 0.0) / longest, 1.0) * WIDTH, 1)

    found = []
    for variant in timed:
        step, spread = variant["step_ms"], variant["spread_ms"]
        marks = [("clock", x(step), x(step)), ("clock", x(step - spread), x(step + spread))]
        if block["ideal_ms"] is not None:
            marks.append(("ideal", x(block["ideal_ms"]), x(block["ideal_ms"])))
        profile = variant.get("profile")
        parts = (
            [(kind, f"{title} {ms_of_ms(profile[f])} ms", profile[f]) for f, kind, title in PARTS]
            if profile
            else [("ground", f"not profiled, {ms_of_ms(step)} ms", step)]
        )
        found.append(Bar(variant["name"], stacked(parts, longest), f"{ms_of_ms(step)} ms", marks))
    return found
