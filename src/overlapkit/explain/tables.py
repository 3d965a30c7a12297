"""A report and a difference on a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron.bridge.recipes.launch_env import EnvironmentVariable
from megatron.bridge.training.decisions import Decision, Outcome
from overlapkit.explain.buckets import bucket_summary, chunk_titles
from overlapkit.explain.difference import Difference
from overlapkit.explain.report import Report
from overlapkit.explain.text import (
    LABELS,
    ChangeText,
    Tone,
    advises,
    by_reason,
    caused,
    gpus_text,
    layout_text,
    no_change,
    place,
    remarks_of,
    restated,
    rules_text,
    run_text,
    sections,
    value_text,
    verdict,
)
from overlapkit.output.numbers import imperative, sentence
from overlapkit.output.tables import add_numbers, borderless, print_item

_STYLES = {
    Outcome.GRANTED: "green",
    Outcome.DEFAULT: "cyan",
    Outcome.REFUSED: "bold red",
    Outcome.WRONG_NUMBERS: "bold white on red",
    Outcome.ERROR: "bold red",
    Outcome.NOTE: "yellow",
}
_TONES: dict[Tone, str] = {"good": "green", "advice": "yellow", "bad": "bold red"}


def show_report(report: Report, console: Console) -> None:
    """The complete report: layout, a table for each dimension, the environment, the verdict."""
    console.print(Text.assemble((report.source, "bold"), f"  {gpus_text(report)}"))
    console.print(run_text(report))
    for note in report.notes:
        console.print(Text(f"assumed: {note}", "yellow"))
    for remark in report.remarks:
        console.print(Text(f"note: {remark}", "yellow"))
    for section in sections(report):
        console.print(Text(f"\n{section.title}", "bold"))
        if section.variables:
            console.print(_environment(section.variables))
        if section.decisions:
            console.print(_decisions(section.decisions))
        if section.not_requested:
            console.print(Text(f"default  {section.not_requested}", "dim"))
        if section.buckets:
            print_item(console, "buckets  ", Text(section.buckets))
    console.print()
    for text, tone in verdict(report):
        console.print(Text(text, _TONES[tone]))


def show_buckets(report: Report, console: Console) -> None:
    """Every bucket of every stage and chunk, under its summary."""
    console.print(Text.assemble((report.source, "bold"), f"  {gpus_text(report)}"))
    console.print(layout_text(report))
    console.print()
    if isinstance(report.buckets, str):
        console.print(report.buckets)
        return
    console.print(bucket_summary(report.buckets))
    for title, chunk in chunk_titles(report.buckets):
        console.print(Text(f"\n{title}", "bold"))
        table = borderless()
        add_numbers(table, "#", "parameters", "reduced MB", "gathered MB")
        table.add_column("first and last gradient", ratio=1, overflow="fold")
        table.add_column("hidden by", max_width=14)
        for number, bucket in enumerate(chunk.buckets, start=1):
            gathered = bucket.gathered_bytes
            table.add_row(
                str(number),
                f"{bucket.parameters:,}",
                f"{bucket.reduced_bytes / 1e6:,.1f}",
                "?" if gathered is None else f"{gathered / 1e6:,.1f}",
                bucket.first if bucket.first == bucket.last else f"{bucket.first}\n{bucket.last}",
                Text(bucket.hidden_by or "nothing", "" if bucket.hidden_by else "bold red"),
            )
        console.print(table)


def _decisions(decisions: list[Decision]) -> Table:
    table = borderless(header=False)
    table.add_column(min_width=7, max_width=7)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(overflow="fold", max_width=14)
    table.add_column(ratio=1, overflow="fold")
    for _, same in groupby(decisions, key=lambda d: (d.rule, d.reason, d.outcome, d.effective)):
        group = list(same)
        d = group[0]
        why = _why(d.reason, d.rule)
        if d.remedy and advises(d):
            why.append(f"\n-> {imperative(d.remedy)}", style="green")
        knobs = "\n".join(each.knob for each in group)
        table.add_row(_label(d), knobs, value_text(d), why)
    return table


def _label(decision: Decision) -> Text:
    return Text(LABELS[decision.outcome], _STYLES[decision.outcome])


def _environment(variables: tuple[EnvironmentVariable, ...]) -> Table:
    table = borderless(header=False)
    table.add_column(min_width=7)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for names, variable in by_reason(variables):
        why = _why(variable.reason, variable.rule)
        table.add_row(Text("needs", "cyan"), "\n".join(names), why)
    return table


def _why(reason: str, rule_id: str) -> Text:
    return Text(sentence(reason)).append(f"  [{rule_id}, {place(rule_id)}]", style="dim")


def show_difference(difference: Difference, console: Console) -> None:
    """Every change under its cause, then the findings of the second run."""
    before, after = difference.before, difference.after
    title = Text.assemble((before.source, "bold"), f" ({before.world_size}) -> ")
    console.print(title.append(after.source, "bold").append(f" ({after.world_size})"))
    for rules in rules_text(difference):
        console.print(Text(rules))
    for remark in remarks_of(difference):
        console.print(Text(f"note: {remark}", "yellow"))
    if not difference.changes:
        console.print(no_change(difference))
    written = restated(difference)
    if written:
        console.print(Text(f"\nAs written: {written}"))
    for cause, changes in caused(difference):
        console.print(Text(f"\n{cause}", "cyan"))
        for change in changes:
            console.print(_change(change))
    if after.findings:
        console.print(Text(f"\nFindings in {after.source}:", "bold red"))
        for d in after.findings:
            line = Text.assemble(_label(d), f"  {d.knob}: {d.reason.rstrip('.')}")
            if d.remedy:
                line.append(f" -> {imperative(d.remedy)}", style="green")
            console.print(line)


def _change(change: ChangeText) -> Text:
    style = "bold" if change.tone is None else _TONES[change.tone]
    text = Text.assemble("  ", (change.label, style), f"  {change.value}")
    return text.append(f"\n    {change.reason}", "dim") if change.reason else text
