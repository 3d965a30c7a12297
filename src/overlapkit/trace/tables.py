"""Shows a report to a person at a terminal; all figures come from the JSON document."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from overlapkit.output.numbers import binary_bytes, ms_of_us, percent
from overlapkit.output.tables import add_numbers, borderless

STEP_ROWS = 12
"""Steps of one rank that are listed before the table is cut to the median."""


def show_trace(document: dict[str, Any], console: Console) -> None:
    """The whole report: steps, dimensions, collectives, ranks, diagnoses, warnings."""
    ranks = document["ranks"]
    head = Text(f"{len(ranks)} rank{'s' if len(ranks) > 1 else ''}", "bold")
    if document["world_size"]:
        head.append(f" of {document['world_size']}")
    if document["gpu"]:
        head.append(f"  {document['gpu']}")
    console.print(head)
    console.print(_steps(ranks))
    rank = max(ranks, key=lambda r: r["median"]["step_us"])
    if rank["median"]["by_dimension"]:
        console.print(Text(f"\nCommunication by dimension, rank {rank['rank']} (ms)", "bold"))
        console.print(_dimensions(rank))
    if rank["exposed_collectives"]:
        console.print(
            Text(f"\nCollectives that cost most, rank {rank['rank']}, all steps (ms)", "bold")
        )
        console.print(_collectives(rank))
    _slowed(rank, console)
    if document["across_ranks"]:
        _across(document["across_ranks"], console)
    show_diagnoses(document["diagnoses"], console)
    show_warnings(document["warnings"], console)


def _plain_table(*columns: str) -> Table:
    table = borderless()
    table.add_column(columns[0])
    add_numbers(table, *columns[1:])
    return table


def _steps(ranks: list[dict[str, Any]]) -> Table:
    table = _plain_table("ms", "step", "compute", "exposed", "hidden", "overlap", "memory", "idle")

    def add(name: str, row: dict[str, Any], style: str = "") -> None:
        table.add_row(
            name,
            ms_of_us(row["step_us"]),
            ms_of_us(row["compute_us"]),
            ms_of_us(row["exposed_comm_us"]),
            ms_of_us(row["hidden_comm_us"]),
            percent(row["overlap_pct"]),
            ms_of_us(row["memory_us"]),
            ms_of_us(row["idle_us"]),
            style=style,
        )

    for rank in ranks:
        prefix = f"rank {rank['rank']}"
        if len({r["rank"] for r in ranks}) < len(ranks):
            prefix += f" device {rank['device']}"
        steps = rank["steps"]
        if len(ranks) == 1 and len(steps) <= STEP_ROWS:
            for step in steps:
                add(step["name"], step)
        if steps:
            add(f"{prefix}, median of {len(steps)}", rank["median"], "bold")
        else:
            add(f"{prefix}, whole trace", rank["whole"], "bold")
    return table


def _dimensions(rank: dict[str, Any]) -> Table:
    table = _plain_table("", "communication", "exposed", "hidden", "of step", "assigned")
    step = rank["median"]["step_us"]
    for dimension, row in rank["median"]["by_dimension"].items():
        share = 100 * row["exposed_comm_us"] / step if step else 0.0
        table.add_row(
            dimension,
            ms_of_us(row["comm_us"]),
            ms_of_us(row["exposed_comm_us"]),
            ms_of_us(row["hidden_comm_us"]),
            percent(share),
            rank["dimension_confidence"].get(dimension, ""),
        )
    return table


def _collectives(rank: dict[str, Any]) -> Table:
    table = _plain_table("kernel", "dimension", "operation", "count", "size", "exposed", "GB/s")
    for c in rank["exposed_collectives"]:
        bandwidth = c["bus_gb_per_s"]
        table.add_row(
            Text(c["name"]),
            c["dimension"],
            Text(c["operation"]),
            f"{c['count']:,}",
            binary_bytes(c["bytes"]),
            ms_of_us(c["exposed_comm_us"]),
            "-" if bandwidth is None else f"{bandwidth:.1f}",
        )
    table.columns[0].overflow = "ellipsis"
    table.columns[0].max_width = 44
    table.columns[0].no_wrap = True
    return table


def _slowed(rank: dict[str, Any], console: Console) -> None:
    slowed = rank["slowed_compute"]
    if slowed["ratio"] is None or slowed["ratio"] < 1.02:
        return
    console.print(
        Text(
            f"\nCompute beside communication takes {slowed['ratio']:.2f} times as long as alone "
            f"(rank {rank['rank']}: {ms_of_us(slowed['lost_us'])} ms lost over all steps)."
        )
    )


def _across(across: dict[str, Any], console: Console) -> None:
    text = Text(
        f"\nAcross ranks: rank {across['slowest_rank']} is slowest, spread "
        f"{ms_of_us(across['spread_us'])} ms ({across['spread_pct']:.1f} %)."
    )
    share = across["exposed_waiting_pct"]
    if share is not None:
        text.append(f" Waiting for late ranks is {share:.0f} % of exposed communication")
        late = across["late_rank"]
        text.append("." if late is None else f"; the late one is rank {late}.")
    console.print(text)


def show_diagnoses(diagnoses: list[dict[str, Any]], console: Console) -> None:
    """Each with its cost, remedy and rule."""
    if not diagnoses:
        console.print(Text("\nNothing stands out.", "green"))
        return
    console.print(Text("\nDiagnoses", "bold"))
    for d in diagnoses:
        cost = f"{ms_of_us(d['cost_us'])} ms a step"
        sure = "" if d["confidence"] == "likely" else f", {d['confidence']}"
        console.print(Text.assemble(("- ", ""), d["message"], (f" ({cost}{sure})", "dim")))
        rule = f" [rule {d['rule']}]" if d["rule"] else ""
        console.print(Text.assemble("  -> ", (d["remedy"], "green"), (rule, "dim")))


def show_warnings(warnings: list[str], console: Console) -> None:
    """What the reader had to leave out or assume."""
    for warning in warnings:
        console.print(Text(f"note: {warning}", "yellow"))
