"""Shows what the lab found to a person; every figure comes from the JSON document."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from overlapkit.lab.wording import layout, outcomes, processor, sentence
from overlapkit.output.numbers import ms_of_ms
from overlapkit.output.tables import add_numbers, borderless

STYLES = {"confirmed": "green", "not confirmed": "bold red", "not testable here": "yellow"}
BARS = range(16, 41)
"""Columns that the longest step's bar may take."""
UNTIMED_ROWS = 12
"""Variants of a block without times that are listed before the rest is only counted."""
SAME = 0.02
"""Share by which bytes sent may differ between variants without being worth a column."""


@dataclass(frozen=True)
class Glyphs:
    """What bars are drawn with; told apart without colours, too."""

    compute: str
    exposed: str
    other: str
    line: str
    end: str
    spread: str


BLOCKS = Glyphs("█", "▒", "·", "─", "┤", "±")
ASCII = Glyphs("#", "=", ".", "-", "|", "+/-")


def show_lab(document: dict[str, Any], console: Console) -> None:
    """Per scenario a table of its variants and a verdict on each claim; then the sum of it."""
    machine = document["machine"]
    console.print(
        f"{processor(machine)}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    )
    link = document["link"]
    console.print(f"link ({link['kind']}): {link['meaning']}")
    if link["kind"] != "kernel":
        console.print(f"because {link['reason']}")
    for scenario in document["scenarios"]:
        console.print()
        console.print(Text.assemble((scenario["name"], "bold"), f"  {scenario['title']}"))
        for block in scenario["blocks"]:
            _block(block, console, named=len(scenario["blocks"]) > 1)
        console.print()
        _claims(scenario["claims"], console)
    console.print()
    console.print(_sum(document))


def _sum(document: dict[str, Any]) -> Text:
    style = STYLES["confirmed" if document["confirmed"] else "not confirmed"]
    told = sentence(outcomes(document["scenarios"]))
    return Text(f"{told} ({document['seconds']:.0f} s)", style)


def _claims(claims: list[dict[str, Any]], console: Console) -> None:
    """Each claim behind its outcome, and its evidence below it."""
    width = max((len(claim["outcome"]) for claim in claims), default=0) + 2
    if console.soft_wrap:
        # Not on a terminal: lines are not broken.
        for claim in claims:
            console.print(f"{claim['outcome']:<{width}}{claim['claim']}")
            console.print(" " * width + claim["evidence"])
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for claim in claims:
        grid.add_row(
            Text(claim["outcome"], STYLES[claim["outcome"]]),
            Text.assemble(claim["claim"], (f"\n{claim['evidence']}", "dim")),
        )
    console.print(grid)


def _block(block: dict[str, Any], console: Console, *, named: bool) -> None:
    head = f"{block['ranks']} rank{'s' if block['ranks'] > 1 else ''}"
    if block["link_mbit"] is not None:
        head += f", link {block['link_mbit']:,.0f} Mbit/s"
    if block["timed"]:
        head += f", {block['counted_steps']} steps each"
    if named:
        head = f"{block['name']}: {head}"
    glyphs = BLOCKS if console.encoding.lower().startswith("utf") else ASCII
    console.print(Text.assemble((head, "dim"), *(_legend(glyphs) if block["timed"] else ())))
    trained = [variant for variant in block["variants"] if "error" not in variant]
    refused = [variant for variant in block["variants"] if "error" in variant]
    if trained and block["timed"]:
        console.print(_timed(block, trained, console.width, glyphs))
    elif len(trained) > UNTIMED_ROWS:
        console.print(f"{len(trained)} variants trained")
    elif trained:
        console.print(_untimed(trained))
    if len(refused) > UNTIMED_ROWS:
        console.print(Text(f"{len(refused)} variants refused", "yellow"))
        return
    for variant in refused:
        why = textwrap.shorten(variant["error"], max(40, console.width - len(variant["name"]) - 12))
        console.print(Text(f"{variant['name']}  refused: {why}", "yellow"))


def _legend(glyphs: Glyphs) -> tuple[str | tuple[str, str], ...]:
    return (
        ("   ", ""),
        (glyphs.compute, "blue"),
        (" compute ", "dim"),
        (glyphs.exposed, "red"),
        (" exposed ", "dim"),
        (f"{glyphs.other} other", "dim"),
    )


def _timed(
    block: dict[str, Any], trained: list[dict[str, Any]], width: int, glyphs: Glyphs
) -> Table:
    names = [variant["name"] for variant in trained]
    columns = _columns(trained, glyphs)

    def left() -> int:
        """Columns of the terminal for bars; two follow each column of the table."""
        taken = 4 + max(len(name) for name in ("ms a step", *names))
        return width - taken - sum(2 + _width(*each) for each in columns.items())

    for name in ("peak MB", "hidden", "buckets", "MB sent", glyphs.spread):
        if left() < BARS.start:
            columns.pop(name, None)
    bar = max(BARS.start, min(BARS.stop - 1, left()))
    table = borderless()
    table.add_column("ms a step", no_wrap=True)
    add_numbers(table, *columns)
    table.add_column("", no_wrap=True)
    steps = [variant["step_ms"] for variant in trained]
    ideal = block["ideal_ms"]
    scale = bar / max(*steps, ideal or 0.0)
    for place, variant in enumerate(trained):
        table.add_row(
            variant["name"],
            *(cells[place] for cells in columns.values()),
            _bar(variant, scale, glyphs),
            style="bold" if len(steps) > 1 and steps[place] == min(steps) else "",
        )
    if ideal is not None:
        cells = {"step": ms_of_ms(ideal), "ratio": f"{ideal / steps[0]:.2f} x"}
        table.add_row(
            "ideal",
            *(cells.get(name, "") for name in columns),
            glyphs.line * (round(ideal * scale) - 1) + glyphs.end,
            style="dim",
        )
    return table


def _width(name: str, cells: list[str]) -> int:
    return max(map(len, (name, *cells)))


def _columns(trained: list[dict[str, Any]], glyphs: Glyphs) -> dict[str, list[str]]:
    """Cells of each column by its heading; of those that tell the variants apart only if so."""

    def profiled(field: str) -> list[str]:
        return [
            ms_of_ms(variant["profile"][field]) if "profile" in variant else "-"
            for variant in trained
        ]

    columns = {
        "step": [ms_of_ms(variant["step_ms"]) for variant in trained],
        glyphs.spread: [ms_of_ms(variant["spread_ms"]) for variant in trained],
        "ratio": [
            "-" if ratio is None else f"{ratio:.2f} x"
            for ratio in (variant["ratio"] for variant in trained)
        ],
        "exposed": profiled("exposed_ms"),
        "hidden": profiled("hidden_ms"),
        "overlap": [
            "-" if share is None else f"{share:.0f} %"
            for share in (variant.get("profile", {}).get("overlap_pct") for variant in trained)
        ],
    }
    buckets = [sum(variant["buckets"]) for variant in trained]
    if len(set(buckets)) > 1:
        columns["buckets"] = [str(count) for count in buckets]
    sent = [variant["wire_mb"] for variant in trained]
    if None not in sent and max(sent) > (1 + SAME) * min(sent):
        columns["MB sent"] = [f"{megabytes:,.1f}" for megabytes in sent]
    columns["peak MB"] = [f"{variant['peak_mb']:,.0f}" for variant in trained]
    return columns


def _bar(variant: dict[str, Any], scale: float, glyphs: Glyphs) -> Text:
    """The step as the clock saw it, split as in the profile."""
    columns = round(variant["step_ms"] * scale)
    profile = variant.get("profile")
    if profile is None:
        return Text(glyphs.other * columns, "dim")
    share = columns / (profile["step_ms"] or 1.0)
    compute = round(profile["compute_ms"] * share)
    both = round((profile["compute_ms"] + profile["exposed_ms"]) * share)
    return Text.assemble(
        (glyphs.compute * compute, "blue"),
        (glyphs.exposed * (both - compute), "red"),
        (glyphs.other * (columns - both), "dim"),
    )


def _untimed(trained: list[dict[str, Any]]) -> Table:
    table = borderless()
    for name in ("variant", "layout", "last loss", "weights"):
        table.add_column(name, no_wrap=True)
    for variant in trained:
        losses = variant["losses"]
        lost = losses and losses[-1] is None
        table.add_row(
            variant["name"],
            layout(variant["layout"]),
            "not finite" if lost else f"{losses[-1]:.6f}" if losses else "-",
            " ".join(digest[:8] for digest in variant["weights"]),
        )
    return table
