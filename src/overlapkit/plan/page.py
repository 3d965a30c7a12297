"""The HTML page of a plan: self-contained, without scripts, every name escaped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from overlapkit.output.html import environment
from overlapkit.output.numbers import ms_of_s
from overlapkit.output.svg import WIDTH, Piece, stacked, ticks
from overlapkit.plan.document import plan_document
from overlapkit.plan.plan import Plan
from overlapkit.plan.search.ranking import Ranked, Ranking
from overlapkit.plan.text import (
    bubble,
    expectation,
    fit,
    part_rows,
    rests,
    sureness,
    title,
    versions,
)

HEIGHT = 420
"""Height of the plot, in its own units."""
MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP, MARGIN_RIGHT = 70, 46, 14, 16
ROWS = 40
"""Layouts in the table. The plot contains all of them."""
COLOURS = (
    ("compute", "compute"),
    ("comm", "compute slowed by hidden communication"),
    ("exposed", "exposed communication"),
    ("idle", "pipeline bubble"),
    ("memory", "optimizer"),
)
"""Colour classes of the shared style, and what they mean here."""


@dataclass(frozen=True)
class Dot:
    """One layout of the plot, in the plot's units; `tp` gives its colour, `title` its tooltip."""

    x: float
    y: float
    tp: int
    title: str
    best: bool


@dataclass(frozen=True)
class Plot:
    """Throughput over memory: one dot for each layout, and the ticks of the axes."""

    dots: list[Dot]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    limit: float
    tps: list[int]


def plan_page(plan: Plan) -> str:
    """The page of `overlapkit plan`: the step, the strategy, the settings and the sweep."""
    ranking = plan.ranking
    return (
        environment("overlapkit.plan")
        .get_template("plan.html")
        .render(
            document=plan_document(plan),
            title=title(plan),
            versions=versions(plan),
            headline=expectation(plan) if plan.estimates else None,
            sureness=". ".join([sureness(plan), *rests(plan)]) if plan.estimates else None,
            fit=fit(plan) if plan.memory is not None else None,
            bubble=list(bubble(plan)),
            bars=_bars(plan),
            colours=COLOURS,
            parts=list(part_rows(plan)) if plan.estimates else [],
            plot=None if ranking is None else plot(ranking),
            ranked=[] if ranking is None else ranking.fitting[:ROWS],
            ranking=ranking,
            width=WIDTH,
            height=HEIGHT,
            left=MARGIN_LEFT,
            bottom=HEIGHT - MARGIN_BOTTOM,
            right=WIDTH - MARGIN_RIGHT,
            top=MARGIN_TOP,
        )
    )


def _bars(plan: Plan) -> list[tuple[str, list[Piece], str]]:
    """The step without and with overlap: name, pieces, length."""
    if not plan.estimates:
        return []
    after, before = plan.estimates
    longest = max(before.step_s, after.step_s)
    return [
        (
            name,
            stacked(
                [
                    (_colour(part), f"{part} {ms_of_s(seconds)} ms", seconds)
                    for part, seconds in summary.parts.items()
                ],
                longest,
            ),
            f"{ms_of_s(summary.step_s)} ms",
        )
        for name, summary in (("without overlap", before), ("with overlap", after))
    ]


def _colour(part: str) -> str:
    """The colour class of a part of the step; compute if no other applies."""
    for word, colour in (("exposed", "exposed"), ("bubble", "idle"), ("optimizer", "memory")):
        if word in part:
            return colour
    return "comm" if part == "contention" else "compute"


def plot(ranking: Ranking) -> Plot:
    """Each layout as a dot: memory to the right, throughput upwards."""
    ranked = ranking.fitting
    limit = ranked[0].memory.usable / 1e9
    rates = [each.summary.tokens_per_s_per_gpu for each in ranked]
    needed = [each.memory.needed / 1e9 for each in ranked]
    # Not from zero: layouts are compared with each other, and are often within a few percent.
    y_ticks = ticks(min(rates), max(rates))
    x_ticks = ticks(min(needed), limit)

    def x(value: float) -> float:
        inside = WIDTH - MARGIN_LEFT - MARGIN_RIGHT
        share = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return round(MARGIN_LEFT + share * inside, 1)

    def y(value: float) -> float:
        inside = HEIGHT - MARGIN_TOP - MARGIN_BOTTOM
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(HEIGHT - MARGIN_BOTTOM - share * inside, 1)

    # The best is drawn last, on top of the others.
    dots = [_dot(each, x, y, best=place == 0) for place, each in enumerate(ranked)][::-1]
    return Plot(
        dots,
        [(x(tick), f"{tick:g}") for tick in x_ticks],
        [(y(tick), f"{tick:,g}") for tick in y_ticks],
        x(limit),
        sorted({each.layout.tp for each in ranked}),
    )


def _dot(
    each: Ranked, x: Callable[[float], float], y: Callable[[float], float], *, best: bool
) -> Dot:
    rate, needed = each.summary.tokens_per_s_per_gpu, each.memory.needed / 1e9
    shown = (
        f"{each.layout}, DP {each.data_parallel_size}: {rate:,.0f} tokens/s/GPU, {needed:.1f} GB"
    )
    return Dot(x(needed), y(rate), each.layout.tp, shown, best)
