"""A report and a difference on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron.bridge.recipes.launch_env import EnvironmentVariable
from megatron.bridge.training.decisions import Decision, Outcome
from overlapkit.explain.buckets import chunk_titles, stage_text, stage_titles
from overlapkit.explain.difference import Difference
from overlapkit.explain.difference_text import (
    WITHOUT_EFFECT,
    ChangeText,
    caused,
    idle_keys,
    no_change,
    remarks_of,
    restated,
    rules_text,
)
from overlapkit.explain.lint.order import Said, alike, faults, leading
from overlapkit.explain.report import Report
from overlapkit.explain.text import (
    OPT_IN,
    Tone,
    assumed_text,
    basis,
    buckets_text,
    by_reason,
    environment_text,
    gpus_text,
    label,
    layout_text,
    place,
    run_text,
    said_rules,
    said_value,
    sections,
    together,
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


def show_report(report: Report, console: Console, *, brief: bool = False) -> None:
    """The complete report: verdict, findings and advice, then a table for each dimension.

    Args:
        report: the report.
        console: where it is shown.
        brief: whether the verdict and the findings are all that is shown.
    """
    console.print(Text.assemble((report.source, "bold"), f"  {gpus_text(report)}"))
    console.print(Text(environment_text(report)))
    line, tone = verdict(report)
    console.print(Text(line, _TONES[tone]))
    for group in alike([*report.findings, *faults(report)] if brief else leading(report)):
        console.print()
        _show_leading(report, group, console)
    console.print()
    console.print(Text("; ".join(basis(report)) if brief else run_text(report)))
    for note in [] if brief else report.notes:
        console.print(Text(f"assumed: {note}", "yellow"))
    if brief and report.notes:
        console.print(Text(assumed_text(report), "yellow"))
    for remark in report.remarks:
        console.print(Text(f"note: {remark}", "yellow"))
    for section in () if brief else sections(report):
        console.print(Text(f"\n{section.title}", "bold"))
        if section.variables:
            console.print(_environment(section.variables))
        if section.said:
            console.print(_decisions(report, section.said))
        if section.not_requested:
            console.print(Text(f"default  {OPT_IN}{section.not_requested}", "dim"))
        if section.buckets:
            print_item(console, "buckets  ", Text(section.buckets))
        if section.bubble:
            print_item(console, "bubble  ", Text(section.bubble))


def _show_leading(report: Report, group: list[Decision], console: Console) -> None:
    """A finding or a note with advice: the user's place, then the outcome, why, and what to do."""
    d = group[0]
    where = report.place(d)
    if where is not None:
        console.print(Text(str(where), "bold"))
    values = ", ".join(said_value(report, each) for each in group)
    console.print(Text.assemble(_label(d), f"  {values}"))
    reason, remedy = together(*group)
    print_item(console, "  ", _why(reason, d.rule))
    if remedy:
        print_item(console, "  -> ", Text(remedy, "green"))


def show_buckets(report: Report, console: Console) -> None:
    """The totals of each stage, then every bucket of every stage and chunk."""
    console.print(Text.assemble((report.source, "bold"), f"  {gpus_text(report)}"))
    console.print(layout_text(report))
    console.print()
    if isinstance(report.buckets, str):
        console.print(report.words.fact(report.buckets))
        return
    for title, stage in stage_titles(report.buckets):
        print_item(console, f"{title}: ", Text(stage_text(stage)))
    console.print(buckets_text(report))
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


def _decisions(report: Report, said: list[Said]) -> Table:
    table = borderless(header=False)
    table.add_column(min_width=7, max_width=7)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(overflow="fold", max_width=14)
    table.add_column(ratio=1, overflow="fold")
    for each in said:
        d = each.first
        if each.leads:
            why = Text("see above", "dim")
        elif each.reason:
            why = Text(sentence(each.reason)).append(f"  [{said_rules(each)}]", style="dim")
        else:
            why = Text(f"as above  [{', '.join(each.rules)}]", "dim")
        values = [value_text(report, x) for x in each.decisions]
        knobs = "\n".join(map(report.name, each.decisions))
        table.add_row(_label(d), knobs, "\n".join(values), why)
    return table


def _label(decision: Decision) -> Text:
    return Text(label(decision), _STYLES[decision.outcome])


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
    if difference.without_effect:
        console.print(Text(f"\n{WITHOUT_EFFECT}", "cyan"))
        for key in idle_keys(difference):
            console.print(Text(f"  {key}"))
    if after.findings:
        console.print(Text(f"\nFindings in {after.source}:", "bold red"))
        for d in after.findings:
            line = Text.assemble(_label(d), f"  {after.name(d)}: {d.reason.rstrip('.')}")
            if d.remedy:
                line.append(f" -> {imperative(d.remedy)}", style="green")
            console.print(line)


def _change(change: ChangeText) -> Text:
    style = "bold" if change.tone is None else _TONES[change.tone]
    text = Text.assemble("  ", (change.label, style), f"  {change.value}")
    return text.append(f"\n    {change.reason}", "dim") if change.reason else text
