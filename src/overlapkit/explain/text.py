"""A report as plain lines: for programs and agents, for whom padding and broken lines cost.

Free of rich, whose import is a fifth of the whole command.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath

from megatron.bridge.recipes.launch_env import EnvironmentVariable
from megatron.bridge.training.decisions import RULES, Decision, Outcome
from overlapkit.config.effective import FRAMEWORKS
from overlapkit.explain.document import source_of
from overlapkit.explain.report import Report
from overlapkit.output.numbers import imperative, setting_text

TITLES = {
    "TP": "Tensor parallel",
    "DP": "Data parallel",
    "PP": "Pipeline parallel",
    "EP": "Expert parallel",
    "precision": "Mixed precision",
    "any": "Other",
    "launch": "Launch environment",
}
LABELS = {
    Outcome.GRANTED: ("asked", "green"),
    Outcome.DEFAULT: ("default", "cyan"),
    Outcome.REFUSED: ("REFUSED", "bold red"),
    Outcome.ERROR: ("ERROR", "bold red"),
    Outcome.NOTE: ("note", "yellow"),
}


@dataclass(frozen=True)
class Block:
    """What one dimension shows: decisions, variables it needs, and what nobody asked for."""

    title: str
    decisions: list[Decision]
    variables: tuple[EnvironmentVariable, ...]
    opted_out: str


def blocks(report: Report) -> Iterator[Block]:
    """The dimensions that have something to show, in order."""
    for dimension, title in TITLES.items():
        decisions = [d for d in report.decisions if d.dimension == dimension]
        variables = report.launch_env if dimension == "launch" else ()
        if not decisions and not variables:
            continue
        opted_out = [d for d in decisions if RULES[d.rule].opt_in and d.outcome is Outcome.DEFAULT]
        names = ", ".join(f"{d.knob} ({setting_text(d.effective)})" for d in opted_out)
        yield Block(
            title,
            [d for d in decisions if d not in opted_out],
            variables,
            f"default  opt-in, not asked for: {names}" if names else "",
        )


def report_lines(report: Report) -> Iterator[str]:
    """The whole report, a line for each decision."""
    yield " ".join(header(report)[0])
    yield header(report)[1]
    yield from (f"assumed: {note}" for note in report.notes)
    for block in blocks(report):
        yield ""
        yield block.title
        for names, variable in alike(block.variables):
            told = f"needs {' '.join(names)}: {variable.reason.rstrip('.')}"
            yield f"{told} [{variable.rule}, {place(variable.rule)}]"
        yield from map(_line, block.decisions)
        if block.opted_out:
            yield block.opted_out
    yield ""
    yield from (text for text, _ in verdict(report))


def _line(d: Decision) -> str:
    told = f"{LABELS[d.outcome][0]} {d.knob} {change(d)}: {d.reason.rstrip('.')}"
    told += f" [{d.rule}, {place(d.rule)}]"
    return told + (f" -> {imperative(d.remedy)}" if d.remedy and advises(d) else "")


def header(report: Report) -> tuple[tuple[str, str], str]:
    """File and GPUs, then layout and assumptions."""
    e, a = report.effective, report.assumptions
    assumed = "" if a.gpu_given else " (assumed: see --gpu)"
    sizes = {
        "TP": e["model.tensor_model_parallel_size"],
        "PP": e["model.pipeline_model_parallel_size"],
        "VPP": e["model.virtual_pipeline_model_parallel_size"] or "none",
        "CP": e["model.context_parallel_size"],
        "EP": e["model.expert_model_parallel_size"],
        "DP": report.data_parallel_size,
    }
    layout = "  ".join(f"{name} {size}" for name, size in sizes.items())
    machines = f" {report.world_size} x {a.gpu_name}{assumed}"
    rules = f"  {FRAMEWORKS[report.framework]}'s rules"
    return (report.source, machines), f"{layout}  Transformer Engine {a.te}{rules}"


def verdict(report: Report) -> Iterator[tuple[str, str]]:
    """The last lines, each with its style: what was found, or that all is well."""
    findings = report.findings
    if findings:
        knobs = ", ".join(f"{LABELS[d.outcome][0]} {d.knob}" for d in findings)
        yield f"{_count(len(findings), 'finding')}: {knobs}", "bold red"
        return
    yield "Everything that was asked for is in effect.", "green"
    notes = [d for d in report.decisions if d.outcome is Outcome.NOTE and advises(d)]
    if notes:
        knobs = ", ".join(dict.fromkeys(d.knob for d in notes))
        yield f"{_count(len(notes), 'note')} with advice: {knobs}", "yellow"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def advises(decision: Decision) -> bool:
    """Whether its remedy is worth showing: what precision overwrites by default is no trouble."""
    return bool(decision.remedy) and (decision.is_finding or decision.dimension != "precision")


def change(d: Decision) -> str:
    """A decision's value: from what was asked to what is, where that was refused."""
    refused = d.outcome is Outcome.REFUSED and d.requested is not None
    return (
        f"{setting_text(d.requested)} -> {setting_text(d.effective)}"
        if refused
        else setting_text(d.effective)
    )


def alike(
    variables: tuple[EnvironmentVariable, ...],
) -> Iterator[tuple[list[str], EnvironmentVariable]]:
    """Assignments that have one reason, and a variable that carries it."""
    for _, alike in groupby(variables, key=lambda v: (v.rule, v.reason)):
        group = list(alike)
        yield [f"{v.name}={v.value}" for v in group], group[0]


def place(rule_id: str) -> str:
    """File and line of a rule, short: ``comm_overlap.py:120``."""
    file, line = source_of(rule_id)
    return f"{PurePosixPath(file).name}:{line}"
