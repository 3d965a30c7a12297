"""The lab's document as one self-contained page: no network, no script, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlapkit.lab.document import LabBlock, LabDocument
from overlapkit.lab.own.text import own_heading, own_parts
from overlapkit.lab.scenario import JudgedScenario
from overlapkit.lab.text import layout, loss, machine, outcomes, summary
from overlapkit.lab.timelines import picture
from overlapkit.lab.variant_document import LabVariant, present
from overlapkit.output.html import environment
from overlapkit.output.numbers import ms_of_ms
from overlapkit.output.printable import all_printable
from overlapkit.output.svg import WIDTH, Piece, stacked

PARTS = (
    ("compute_ms", "compute", "compute"),
    ("exposed_ms", "exposed", "exposed communication"),
    ("other_ms", "idle", "other"),
)
"""Field, colour class and name of the parts of a profiled step, in stacking order."""

TIMELINE_KEY = (
    ("compute", "compute"),
    ("comm", "hidden communication"),
    ("exposed", "exposed communication"),
)

UNFOLDED = 12
"""Up to how many variants of a block without times are shown unfolded."""


@dataclass(frozen=True)
class Bar:
    """A variant's step.

    Attributes:
        label: the variant's name.
        pieces: the profiled parts.
        length: of the step by the clock, in words.
        marks: kind, and the two ends on the axis, of what is drawn over the bar.
    """

    label: str
    pieces: list[Piece]
    length: str
    marks: list[tuple[str, float, float]]


def lab_page(document: LabDocument, judged: Sequence[JudgedScenario]) -> str:
    """The page: claims with their evidence, and for each block bars, timelines and a table.

    Args:
        document: what `overlapkit.lab.document.lab_document` made of `judged`.
        judged: the scenarios, whose profiles have the timelines.
    """
    document = all_printable(document)
    return (
        environment(
            "overlapkit.lab",
            layout=layout,
            loss=loss,
            machine=machine,
            own_heading=own_heading,
            own_parts=own_parts,
        )
        .get_template("lab.html")
        .render(
            document=document,
            outcomes=outcomes(document.scenarios),
            summaries=[summary(scenario) for scenario in document.scenarios],
            bars=[[bars(block) for block in scenario.blocks] for scenario in document.scenarios],
            pictures=[
                [picture(one.observations.variants(block.name)) for block in one.blocks]
                for one in judged
            ],
            kinds=[(kind, title) for _, kind, title in PARTS],
            timeline_key=TIMELINE_KEY,
            unfolded=UNFOLDED,
        )
    )


def bars(block: LabBlock) -> list[Bar]:
    """A block's timed variants as bars on one scale.

    The pieces are the parts of the profiled step. Marked are the ideal, and the median and spread
    of the steps that were timed without the profiler.
    """
    timed = [variant for variant in block.variants if variant.was_timed]
    ends = [present(variant.step_ms) + present(variant.spread_ms) for variant in timed]
    ends += [variant.profile.step_ms for variant in timed if variant.profile]
    longest = max(*ends, block.ideal_ms or 0.0) or 1.0 if ends else 1.0
    return [_bar(variant, block.ideal_ms, longest) for variant in timed]


def _bar(variant: LabVariant, ideal_ms: float | None, longest_ms: float) -> Bar:
    def x(value_ms: float) -> float:
        return round(min(max(value_ms, 0.0) / longest_ms, 1.0) * WIDTH, 1)

    step, spread = present(variant.step_ms), present(variant.spread_ms)
    marks = [("clock", x(step), x(step)), ("clock", x(step - spread), x(step + spread))]
    if ideal_ms is not None:
        marks.append(("ideal", x(ideal_ms), x(ideal_ms)))
    profile = variant.profile
    parts = (
        [
            (kind, f"{title} {ms_of_ms(getattr(profile, name))} ms", getattr(profile, name))
            for name, kind, title in PARTS
        ]
        if profile
        else [("ground", f"not profiled, {ms_of_ms(step)} ms", step)]
    )
    return Bar(variant.name, stacked(parts, longest_ms), f"{ms_of_ms(step)} ms", marks)
