"""Shows a report to a person at a terminal, as tables."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron.bridge.recipes.launch_env import EnvironmentVariable
from megatron.bridge.training.decisions import Decision
from overlapkit.explain.report import Report
from overlapkit.explain.text import LABELS, advises, alike, blocks, change, header, place, verdict
from overlapkit.output.numbers import imperative, sentence
from overlapkit.output.tables import borderless


def show_report(report: Report, console: Console) -> None:
    """The whole report: layout, a table for each dimension, the environment, the verdict."""
    (source, machines), layout = header(report)
    console.print(Text.assemble((source, "bold"), f" {machines}"))
    console.print(layout)
    for note in report.notes:
        console.print(Text(f"assumed: {note}", "yellow"))
    for block in blocks(report):
        console.print(Text(f"\n{block.title}", "bold"))
        if block.variables:
            console.print(_environment(block.variables))
        if block.decisions:
            console.print(_table(block.decisions))
        if block.opted_out:
            console.print(Text(block.opted_out, "dim"))
    console.print()
    for text, style in verdict(report):
        console.print(Text(text, style))


def _table(decisions: list[Decision]) -> Table:
    table = borderless(header=False)
    table.add_column(min_width=7)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(overflow="fold", max_width=14)
    table.add_column(ratio=1)
    for _, same in groupby(decisions, key=lambda d: (d.rule, d.reason, d.outcome, d.effective)):
        group = list(same)
        d = group[0]
        why = _why(d.reason, d.rule)
        if d.remedy and advises(d):
            why.append(f"\n-> {imperative(d.remedy)}", style="green")
        knobs = "\n".join(each.knob for each in group)
        table.add_row(Text(*LABELS[d.outcome]), knobs, change(d), why)
    return table


def _environment(variables: tuple[EnvironmentVariable, ...]) -> Table:
    table = borderless(header=False)
    table.add_column(min_width=7)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for names, variable in alike(variables):
        why = _why(variable.reason, variable.rule)
        table.add_row(Text("needs", "cyan"), "\n".join(names), why)
    return table


def _why(reason: str, rule_id: str) -> Text:
    return Text(sentence(reason)).append(f"  [{rule_id}, {place(rule_id)}]", style="dim")


def show_findings(report: Report, console: Console) -> None:
    """Every finding with its reason and remedy, in a few lines."""
    for d in report.findings:
        line = Text.assemble(Text(*LABELS[d.outcome]), f"  {d.knob}: {d.reason.rstrip('.')}")
        if d.remedy:
            line.append(f" -> {imperative(d.remedy)}", style="green")
        console.print(line)
