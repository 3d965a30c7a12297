"""Shows an examination: lines for pipes, tables on a terminal, one JSON document for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from overlapkit.doctor.examine import Examination
from overlapkit.doctor.finding import MOST
from overlapkit.doctor.text import cost, facts, names, verdict
from overlapkit.output.numbers import imperative

if TYPE_CHECKING:
    from rich.console import Console


def show_examination(x: Examination, console: Console) -> None:
    """The examination as tables."""
    from rich.table import Table
    from rich.text import Text

    seen = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    seen.add_column(style="bold", no_wrap=True)
    seen.add_column(ratio=1)
    for name, text in facts(x):
        seen.add_row(name, text)
    console.print(seen)
    console.print()
    table = Table(box=None, padding=(0, 2, 1, 0), show_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for number, finding in enumerate(x.findings[:MOST], start=1):
        told = Text(finding.message, "bold")
        if cost(finding):
            told.append(f"  {cost(finding)}", "bold red")
        told.append(f"  [{names(finding)}]", "dim")
        for each in finding.evidence:
            told.append(f"\n{each.source}: {each.text}", "not bold")
        if finding.remedy:
            told.append(f"\n-> {imperative(finding.remedy)}", "green")
        table.add_row(f"{number}.", told)
    if x.findings:
        console.print(table)
    console.print(Text(verdict(x), "bold red" if x.findings else "green"))
