"""A report on a terminal; all figures come from the JSON document."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from overlapkit.output.numbers import binary_bytes, ms_of_us, percent
from overlapkit.output.tables import add_numbers, borderless, print_item, shorten_first
from overlapkit.trace.document import TraceDocument
from overlapkit.trace.heat import HOTTEST, heat_maps, longest_and_shortest
from overlapkit.trace.labels import label_of
from overlapkit.trace.rank_document import TraceMedian, TraceRank, TraceWindow
from overlapkit.trace.text import (
    across_sentence,
    configuration,
    cost,
    diagnosed,
    extent,
    headline,
    longer_steps,
    slowed_sentence,
    waits,
)

STEP_ROWS = 12
"""Steps of a single rank up to which each is listed; beyond, only their median is."""


def show_trace(document: TraceDocument, console: Console, number: int | None = None) -> None:
    """Print the report: steps, dimensions, collectives, ranks, diagnoses, warnings.

    Args:
        document: the report.
        console: where.
        number: the rank that is described in detail; None for the slowest.

    Raises:
        InputError: there is no such rank.
    """
    rank = document.detailed(number)
    label = label_of(rank, document.ranks)
    console.print(Text(headline(document), "bold"))
    if configuration(document):
        console.print(Text(configuration(document), "dim"))
    for doubt in [*document.doubts, *document.contradictions]:
        print_item(console, "", Text(doubt, "bold yellow"))
    shown = longest_and_shortest(document.ranks, rank)
    console.print(_steps(shown))
    if len(shown) < len(document.ranks):
        console.print(Text(f"{len(document.ranks) - len(shown)} more, between these", "dim"))
    _show_heat(document, console)
    if waits(rank.median):
        console.print(Text(f"{label}: {waits(rank.median)}"))
    for line in longer_steps(rank):
        print_item(console, f"{label}: ", Text(line))
    if rank.median.by_dimension:
        console.print(Text(f"\nCommunication by dimension, {label} (ms)", "bold"))
        console.print(_dimensions(rank))
    if rank.exposed_collectives:
        heading = f"\nMost expensive collectives, {label}, {extent(rank)} (ms)"
        console.print(Text(heading, "bold"))
        console.print(_collectives(rank, console))
    slowed = slowed_sentence(rank.slowed_compute, rank, label)
    if slowed is not None:
        console.print(Text(f"\n{slowed}"))
    if document.across_ranks is not None:
        console.print(Text(f"\n{across_sentence(document.across_ranks)}"))
        show_warnings(document.across_ranks.notes, console)
    show_diagnoses(document, console)
    show_warnings(document.warnings, console)


def _show_heat(document: TraceDocument, console: Console) -> None:
    """Print the exposed communication of each rank as a digit, where there are many."""
    maps = heat_maps(document)
    if not maps:
        return
    console.print(
        Text(f"\nExposed communication by rank, 0 none to {HOTTEST} the most of all ranks", "bold")
    )
    for heat in maps:
        console.print(Text(heat.sentence))
        for row in heat.rows:
            text = Text(f"{row[0].rank:>7} ", "dim")
            for place, cell in enumerate(row):
                text.append(" " * (place % 8 == 0) + str(cell.level), _heat_style(cell.level))
            console.print(text)


def _heat_style(level: int) -> str:
    return "bold red" if level > 6 else "yellow" if level > 3 else "green"


def show_diagnoses(document: TraceDocument, console: Console) -> None:
    """Print each diagnosis with its cost, remedy and rule."""
    if not document.diagnoses:
        style = "yellow" if document.doubts else "green"
        console.print(Text(f"\n{diagnosed(document)}", style))
        return
    console.print(Text("\nDiagnoses", "bold"))
    for d in document.diagnoses:
        print_item(console, "- ", Text.assemble(d.message, (f" ({cost(d, document)})", "dim")))
        rule = f" [rule {d.rule}]" if d.rule else ""
        print_item(console, "  -> ", Text.assemble((d.remedy, "green"), (rule, "dim")))


def show_warnings(warnings: Sequence[str], console: Console) -> None:
    """Print what was omitted or assumed."""
    for warning in warnings:
        print_item(console, "note: ", Text(warning, "yellow"))


def _table(first: str, *numbers: str) -> Table:
    table = borderless()
    table.add_column(first)
    add_numbers(table, *numbers)
    return table


def _steps(ranks: Sequence[TraceRank]) -> Table:
    length = next((rank.unit for rank in ranks if rank.steps), "length")
    table = _table("ms", length, "compute", "exposed", "hidden", "overlap", "memory", "idle")
    for rank in ranks:
        prefix = label_of(rank, ranks)
        if len(ranks) == 1 and len(rank.steps) <= STEP_ROWS:
            for step in rank.steps:
                _add_times(table, step.name, step)
        if rank.steps:
            _add_times(table, f"{prefix}, median of {len(rank.steps)}", rank.median, "bold")
        else:
            _add_times(table, f"{prefix}, whole trace", rank.whole, "bold")
    return table


def _add_times(table: Table, name: str, row: TraceWindow | TraceMedian, style: str = "") -> None:
    table.add_row(
        name,
        ms_of_us(row.step_us),
        ms_of_us(row.compute_us),
        ms_of_us(row.exposed_comm_us),
        ms_of_us(row.hidden_comm_us),
        percent(row.overlap_pct),
        ms_of_us(row.memory_us),
        ms_of_us(row.idle_us),
        style=style,
    )


def _dimensions(rank: TraceRank) -> Table:
    of = f"of {rank.unit}" if rank.steps else "of trace"
    table = _table("", "communication", "exposed", "hidden", of, "assigned")
    step = rank.median.step_us
    for dimension, row in rank.median.by_dimension.items():
        table.add_row(
            dimension,
            ms_of_us(row.comm_us),
            ms_of_us(row.exposed_comm_us),
            ms_of_us(row.hidden_comm_us),
            percent(100 * row.exposed_comm_us / step if step else 0.0),
            rank.dimension_confidence.get(dimension, ""),
        )
    return table


def _collectives(rank: TraceRank, console: Console) -> Table:
    table = borderless()
    for name in ("kernel", "dimension", "operation"):
        table.add_column(name)
    add_numbers(table, "count", "size", "exposed", "GB/s")
    for c in rank.exposed_collectives:
        table.add_row(
            Text(c.name),
            c.dimension,
            Text(c.operation),
            f"{c.count:,}",
            binary_bytes(c.bytes),
            ms_of_us(c.exposed_comm_us),
            "-" if c.bus_gb_per_s is None else f"{c.bus_gb_per_s:.1f}",
        )
    shorten_first(table, console, most=44)
    return table
