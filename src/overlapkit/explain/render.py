"""Shows a report to a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron.bridge.recipes.launch_env import EnvironmentVariable
from megatron.bridge.training.decisions import RULES, Decision, Outcome
from overlapkit.explain.report import Report, source_of

TITLES = {
    "TP": "Tensor parallel",
    "DP": "Data parallel",
    "PP": "Pipeline parallel",
    "EP": "Expert parallel",
    "precision": "Mixed precision",
    "any": "Other",
    "launch": "Launch environment",
}
_LABELS = {
    Outcome.GRANTED: ("asked", "green"),
    Outcome.DEFAULT: ("default", "cyan"),
    Outcome.REFUSED: ("REFUSED", "bold red"),
    Outcome.ERROR: ("ERROR", "bold red"),
    Outcome.NOTE: ("note", "yellow"),
}


def show_report(report: Report, console: Console) -> None:
    """The whole report: layout, each dimension, the environment, the verdict.

    Tables on a terminal. Into a pipe one line each: it is read by programs and agents, for whom
    padding and broken lines cost and keys must be found by grep.
    """
    show = _show_tables if console.is_terminal else _show_lines
    show_header(report, console)
    for dimension, title in TITLES.items():
        decisions = [d for d in report.decisions if d.dimension == dimension]
        if not decisions and dimension != "launch":
            continue
        console.print(Text(f"\n{title}", "bold"))
        opted_out = [d for d in decisions if RULES[d.rule].opt_in and d.outcome is Outcome.DEFAULT]
        show(
            [d for d in decisions if d not in opted_out],
            report.launch_env if dimension == "launch" else (),
            console,
        )
        if opted_out:
            names = ", ".join(f"{d.knob} ({short(d.effective)})" for d in opted_out)
            console.print(Text(f"default  opt-in, not asked for: {names}", "dim"))
    console.print()
    _show_verdict(report, console)


def _show_verdict(report: Report, console: Console) -> None:
    findings = report.findings
    if findings:
        knobs = ", ".join(f"{_LABELS[d.outcome][0]} {d.knob}" for d in findings)
        console.print(Text(f"{_count(len(findings), 'finding')}: {knobs}", "bold red"))
        return
    console.print(Text("Everything that was asked for is in effect.", "green"))
    notes = [d for d in report.decisions if d.outcome is Outcome.NOTE and _advises(d)]
    if notes:
        knobs = ", ".join(dict.fromkeys(d.knob for d in notes))
        console.print(Text(f"{_count(len(notes), 'note')} with advice: {knobs}", "yellow"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _advises(decision: Decision) -> bool:
    """Whether its remedy is worth showing: what precision overwrites by default is no trouble."""
    return bool(decision.remedy) and (decision.is_finding or decision.dimension != "precision")


def _show_lines(
    decisions: list[Decision], variables: tuple[EnvironmentVariable, ...], console: Console
) -> None:
    for names, variable in _alike(variables):
        told = f"needs {' '.join(names)}: {variable.reason.rstrip('.')}"
        console.print(f"{told} [{variable.rule}, {place(variable.rule)}]")
    for d in decisions:
        line = f"{_LABELS[d.outcome][0]} {d.knob} {_value(d)}: {d.reason.rstrip('.')}"
        line += f" [{d.rule}, {place(d.rule)}]"
        if d.remedy and _advises(d):
            line += f" -> {imperative(d.remedy)}"
        console.print(line)


def _show_tables(
    decisions: list[Decision], variables: tuple[EnvironmentVariable, ...], console: Console
) -> None:
    if variables:
        console.print(_environment(variables))
    if decisions:
        console.print(_table(decisions))


def _value(d: Decision) -> str:
    refused = d.outcome is Outcome.REFUSED and d.requested is not None
    return f"{short(d.requested)} -> {short(d.effective)}" if refused else short(d.effective)


def show_header(report: Report, console: Console) -> None:
    """File, GPUs, layout and assumptions, in two lines."""
    e, a = report.effective, report.assumptions
    assumed = "" if a.gpu_given else " (assumed: see --gpu)"
    console.print(
        Text.assemble((report.source, "bold"), f"  {report.world_size} x {a.gpu_name}{assumed}")
    )
    sizes = {
        "TP": e["model.tensor_model_parallel_size"],
        "PP": e["model.pipeline_model_parallel_size"],
        "VPP": e["model.virtual_pipeline_model_parallel_size"] or "none",
        "CP": e["model.context_parallel_size"],
        "EP": e["model.expert_model_parallel_size"],
        "DP": report.data_parallel_size,
    }
    layout = "  ".join(f"{name} {size}" for name, size in sizes.items())
    console.print(Text(f"{layout}  Transformer Engine {a.te}"))


def _table(decisions: list[Decision]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    table.add_column(min_width=7)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(overflow="fold", max_width=14)
    table.add_column(ratio=1)
    for _, alike in groupby(decisions, key=lambda d: (d.rule, d.reason, d.outcome, d.effective)):
        group = list(alike)
        d = group[0]
        why = _why(d.reason, d.rule)
        if d.remedy and _advises(d):
            why.append(f"\n-> {imperative(d.remedy)}", style="green")
        knobs = "\n".join(each.knob for each in group)
        table.add_row(Text(*_LABELS[d.outcome]), knobs, _value(d), why)
    return table


def _environment(variables: tuple[EnvironmentVariable, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    table.add_column(min_width=7)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for names, variable in _alike(variables):
        why = _why(variable.reason, variable.rule)
        table.add_row(Text("needs", "cyan"), "\n".join(names), why)
    return table


def _alike(
    variables: tuple[EnvironmentVariable, ...],
) -> Iterator[tuple[list[str], EnvironmentVariable]]:
    """Assignments that have one reason, and a variable that carries it."""
    for _, alike in groupby(variables, key=lambda v: (v.rule, v.reason)):
        group = list(alike)
        yield [f"{v.name}={v.value}" for v in group], group[0]


def _why(reason: str, rule_id: str) -> Text:
    return Text(sentence(reason)).append(f"  [{rule_id}, {place(rule_id)}]", style="dim")


def show_findings(report: Report, console: Console) -> None:
    """Every finding with its reason and remedy, in a few lines."""
    for d in report.findings:
        line = Text.assemble(Text(*_LABELS[d.outcome]), f"  {d.knob}: {d.reason.rstrip('.')}")
        if d.remedy:
            line.append(f" -> {imperative(d.remedy)}", style="green")
        console.print(line)


def place(rule_id: str) -> str:
    """File and line of a rule, short: ``comm_overlap.py:120``."""
    file, line = source_of(rule_id)
    return f"{PurePosixPath(file).name}:{line}"


def short(value: Any) -> str:
    """A value in a table cell: a configuration of ten GEMMs is not spelt out."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, (dict, list, tuple)) or hasattr(value, "__dataclass_fields__"):
        return "given"
    return str(value)


def sentence(text: str) -> str:
    """A reason as a sentence: capital first, no final stop; a knob's name keeps its case."""
    first = text.partition(" ")[0]
    return (text if set(first) & set("_.=") else text[:1].upper() + text[1:]).rstrip(".")


def imperative(text: str) -> str:
    """A remedy as it follows an arrow: small first letter, no final stop."""
    return (text[:1].lower() + text[1:]).rstrip(".")
