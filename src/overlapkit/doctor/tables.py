"""An examination on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlapkit.doctor.examine import Examination
from overlapkit.doctor.finding import MOST
from overlapkit.doctor.text import cost, examined, ids, verdict
from overlapkit.output.numbers import imperative
from overlapkit.output.tables import borderless


def show_examination(x: Examination, console: Console) -> None:
    """The examination as tables: what was examined, the findings, the verdict."""
    overview = borderless(header=False)
    overview.add_column(style="bold", no_wrap=True)
    overview.add_column(ratio=1, overflow="fold")
    for name, text in examined(x):
        overview.add_row(name, text)
    console.print(overview)
    console.print()
    table = borderless(header=False, gap=1)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for number, finding in enumerate(x.findings[:MOST], start=1):
        cell = Text(finding.message, "bold")
        if cost(finding):
            cell.append(f"  {cost(finding)}", "bold red")
        cell.append(f"  [{ids(finding)}]", "dim")
        for each in finding.evidence:
            cell.append(f"\n{each.source}: {each.text}", "not bold")
        if finding.remedy:
            cell.append(f"\n-> {imperative(finding.remedy)}", "green")
        table.add_row(f"{number}.", cell)
    if x.findings:
        console.print(table)
    console.print(Text(verdict(x), "bold red" if x.findings else "green"))
