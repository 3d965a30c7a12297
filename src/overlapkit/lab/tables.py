"""The lab's document on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from overlapkit.lab.document import LabBlock, LabClaim, LabDocument
from overlapkit.lab.own.text import show_own
from overlapkit.lab.text import heading, layout, loss, machine, outcomes, ratio, verdict
from overlapkit.lab.variant_document import LabVariant, present
from overlapkit.output.numbers import ms_of_ms
from overlapkit.output.tables import add_numbers, borderless

STYLES = {"confirmed": "green", "not confirmed": "bold red", "not testable here": "yellow"}
BARS = range(16, 41)
"""Columns that the longest step's bar may take."""
UNTIMED_ROWS = 12
"""Up to how many variants of a block without times are listed; more are only counted."""
SAME = 0.02
"""Bytes sent get a column only if they differ between variants by more than this share."""


@dataclass(frozen=True)
class Glyphs:
    """Characters of a bar; they can be distinguished without colours."""

    compute: str
    exposed: str
    other: str
    line: str
    end: str
    spread: str


BLOCKS = Glyphs("█", "▒", "·", "─", "┤", "±")
ASCII = Glyphs("#", "=", ".", "-", "|", "+/-")


def show_lab(document: LabDocument, console: Console) -> None:
    """For each scenario a table of its variants and a verdict on each claim; then the total."""
    if document.own:
        show_own(document.own, console)
    if document.machine.versions:
        _show_machine(document, console)
    for scenario in document.scenarios:
        console.print()
        console.print(Text.assemble((scenario.name, "bold"), f"  {scenario.title}"))
        for block in scenario.blocks:
            _show_block(block, console, named=len(scenario.blocks) > 1)
        console.print()
        _show_claims(scenario.claims, console)
    console.print()
    style = STYLES["confirmed" if document.confirmed else "not confirmed"]
    console.print(
        Text(f"{verdict(outcomes(document.scenarios))} ({document.seconds:.0f} s)", style)
    )


def _show_machine(document: LabDocument, console: Console) -> None:
    console.print(machine(document.machine))
    link = document.link
    console.print(f"link ({link.kind}): {link.meaning}")
    if link.kind != "kernel":
        console.print(f"because {link.reason}")


def _show_claims(claims: Sequence[LabClaim], console: Console) -> None:
    """Each claim after its outcome, with its evidence below."""
    width = max((len(claim.outcome) for claim in claims), default=0) + 2
    if console.soft_wrap:
        # Not a terminal: lines are not broken.
        for claim in claims:
            console.print(f"{claim.outcome:<{width}}{claim.claim}")
            console.print(" " * width + claim.evidence)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for claim in claims:
        grid.add_row(
            Text(claim.outcome, STYLES[claim.outcome]),
            Text.assemble(claim.claim, (f"\n{claim.evidence}", "dim")),
        )
    console.print(grid)


def _show_block(block: LabBlock, console: Console, *, named: bool) -> None:
    head = f"{block.name}: {heading(block)}" if named else heading(block)
    glyphs = BLOCKS if console.encoding.lower().startswith("utf") else ASCII
    console.print(Text.assemble((head, "dim"), *(_legend(glyphs) if block.timed else ())))
    trained = [variant for variant in block.variants if variant.was_trained]
    timed = [variant for variant in trained if variant.was_timed]
    if timed:
        console.print(_timed(timed, block.ideal_ms, console.width, glyphs))
    elif len(trained) > UNTIMED_ROWS:
        console.print(f"{len(trained)} variants trained")
    elif trained:
        console.print(_untimed(trained))
    errors = {v.name: v.error for v in block.variants if isinstance(v.error, str)}
    if len(errors) > UNTIMED_ROWS:
        console.print(Text(f"{len(errors)} variants refused", "yellow"))
        return
    for name, error in errors.items():
        why = textwrap.shorten(error, max(40, console.width - len(name) - 12))
        console.print(Text(f"{name}  refused: {why}", "yellow"))


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
    variants: Sequence[LabVariant], ideal_ms: float | None, width: int, glyphs: Glyphs
) -> Table:
    names = [variant.name for variant in variants]
    columns = _columns(variants, glyphs)

    def left() -> int:
        """Columns of the terminal for bars; each column of the table is followed by two."""
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
    steps = [present(variant.step_ms) for variant in variants]
    scale = bar / (max(*steps, ideal_ms or 0.0) or 1.0)
    for place, variant in enumerate(variants):
        table.add_row(
            variant.name,
            *(cells[place] for cells in columns.values()),
            _bar(variant, scale, glyphs),
            style="bold" if len(steps) > 1 and steps[place] == min(steps) else "",
        )
    if ideal_ms is not None:
        cells = {"step": ms_of_ms(ideal_ms), "ratio": ratio(ideal_ms, steps[0])}
        table.add_row(
            "ideal",
            *(cells.get(name, "") for name in columns),
            glyphs.line * (round(ideal_ms * scale) - 1) + glyphs.end,
            style="dim",
        )
    return table


def _width(name: str, cells: list[str]) -> int:
    return max(map(len, (name, *cells)))


def _columns(variants: Sequence[LabVariant], glyphs: Glyphs) -> dict[str, list[str]]:
    """Cells of each column by its heading; buckets and bytes only where they differ."""
    profiles = [variant.profile or None for variant in variants]
    ratios = [present(variant.ratio) for variant in variants]
    shares = [profile.overlap_pct if profile else None for profile in profiles]
    columns = {
        "step": [ms_of_ms(present(variant.step_ms)) for variant in variants],
        glyphs.spread: [ms_of_ms(present(variant.spread_ms)) for variant in variants],
        "ratio": ["-" if each is None else f"{each:.2f} x" for each in ratios],
        "exposed": [ms_of_ms(profile.exposed_ms if profile else None) for profile in profiles],
        "hidden": [ms_of_ms(profile.hidden_ms if profile else None) for profile in profiles],
        "overlap": ["-" if share is None else f"{share:.0f} %" for share in shares],
    }
    buckets = [sum(present(variant.buckets)) for variant in variants]
    if len(set(buckets)) > 1:
        columns["buckets"] = [str(count) for count in buckets]
    sent = [megabytes for v in variants if (megabytes := present(v.wire_mb)) is not None]
    if len(sent) == len(variants) and max(sent) > (1 + SAME) * min(sent):
        columns["MB sent"] = [f"{megabytes:,.1f}" for megabytes in sent]
    columns["peak MB"] = [f"{present(variant.peak_mb):,.0f}" for variant in variants]
    return columns


def _bar(variant: LabVariant, scale: float, glyphs: Glyphs) -> Text:
    """The step as long as the clock measured it, divided as in the profile."""
    columns = round(present(variant.step_ms) * scale)
    profile = variant.profile
    if not profile:
        return Text(glyphs.other * columns, "dim")
    share = columns / (profile.step_ms or 1.0)
    compute = round(profile.compute_ms * share)
    both = round((profile.compute_ms + profile.exposed_ms) * share)
    return Text.assemble(
        (glyphs.compute * compute, "blue"),
        (glyphs.exposed * (both - compute), "red"),
        (glyphs.other * (columns - both), "dim"),
    )


def _untimed(variants: Sequence[LabVariant]) -> Table:
    table = borderless()
    for name in ("variant", "layout", "last loss", "weights"):
        table.add_column(name, no_wrap=True)
    for variant in variants:
        table.add_row(
            variant.name,
            layout(present(variant.layout)),
            loss(variant, -1),
            " ".join(digest[:8] for digest in present(variant.weights)),
        )
    return table
