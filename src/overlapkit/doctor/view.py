"""Shows an examination: lines for pipes, tables on a terminal, one JSON document for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from overlapkit.doctor.environment import shown_variables
from overlapkit.doctor.examine import Examination, configuration_told, profile_told
from overlapkit.doctor.finding import MOST, Finding
from overlapkit.doctor.packages import in_bounds
from overlapkit.explain.lines import imperative

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "overlapkit/doctor/v1"


def facts(x: Examination) -> Iterator[tuple[str, str]]:
    """What was looked at: a name and what was seen, one each."""
    if x.report is None:
        yield "configuration", "not given"
    else:
        yield "configuration", configuration_told(x.report)
    variables = " ".join(f"{n}={v}" for n, v in shown_variables(x.environment).items())
    yield "environment", f"{x.environment_source}: {variables or 'none of interest is set'}"
    yield "packages", ", ".join(f"{p.name} {p.version or '-'}" for p in x.packages) + " (here)"
    yield "GPUs", x.machine.told
    yield "profile", "not given" if x.profile is None else profile_told(x.profile)
    for note in x.assumed:
        yield "assumed", note


def cost(finding: Finding) -> str:
    """The measured time of a finding; empty without."""
    return "" if finding.cost_us is None else f"{finding.cost_us / 1000:.2f} ms a step"


def names(finding: Finding) -> str:
    """The finding's id and the rules that speak of it."""
    return ", ".join(dict.fromkeys([finding.id, *finding.rules]))


def verdict(x: Examination) -> str:
    """The last line."""
    count = len(x.findings)
    if not count and x.report is None and x.profile is None:
        return (
            "Nothing was found in the environment and the packages; give the run's configuration, "
            "and a profile with --trace, to look further."
        )
    if not count:
        return "Nothing was found that keeps communication from being hidden."
    more = f", of which the {MOST} most likely are told" if count > MOST else ""
    return f"{count} finding{'s' if count != 1 else ''}{more}."


def examination_lines(x: Examination) -> Iterator[str]:
    """The examination as plain lines."""
    yield from (f"{name}: {seen}" for name, seen in facts(x))
    yield ""
    for number, finding in enumerate(x.findings[:MOST], start=1):
        measured = f" ({cost(finding)})" if cost(finding) else ""
        yield f"{number}. {finding.message}{measured} [{names(finding)}]"
        yield from (f"   {seen.source}: {seen.text}" for seen in finding.evidence)
        if finding.remedy:
            yield f"   -> {imperative(finding.remedy)}"
    yield verdict(x)


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


def examination_json(x: Examination) -> dict[str, Any]:
    """The examination as the JSON interface `overlapkit/doctor/v1` (docs/json-doctor.md)."""
    report = x.report
    return {
        "schema": SCHEMA,
        "config": None if report is None else report.source,
        "framework": None if report is None else report.framework,
        "world_size": None if report is None else report.world_size,
        "gpu": None if report is None else report.assumptions.gpu_name,
        "transformer_engine": None if report is None else report.assumptions.te,
        "environment": {
            "source": x.environment_source,
            "variables": shown_variables(x.environment),
        },
        "packages": [
            {"name": p.name, "version": p.version, "required": p.required, "fits": in_bounds(p)}
            for p in x.packages
        ],
        "machine": {
            "gpus": list(x.machine.gpus),
            "driver": x.machine.driver,
            "nvlink": x.machine.nvlink,
            "told": x.machine.told,
        },
        "profile": None if x.profile is None else _profile_json(x.profile),
        "findings": [_finding_json(f) for f in x.findings[:MOST]],
        "more_findings": max(0, len(x.findings) - MOST),
        "assumed": list(x.assumed),
    }


def _profile_json(profile: dict[str, Any]) -> dict[str, Any]:
    slowest = max(profile["ranks"], key=lambda rank: rank["median"]["step_us"])
    return {
        "files": profile["files"],
        "rank": slowest["rank"],
        "step_us": slowest["median"]["step_us"],
        "exposed_comm_us": slowest["median"]["exposed_comm_us"],
        "warnings": profile["warnings"],
    }


def _finding_json(f: Finding) -> dict[str, Any]:
    return {
        "id": f.id,
        "kind": f.kind,
        "message": f.message,
        "evidence": [{"source": e.source, "text": e.text} for e in f.evidence],
        "remedy": f.remedy or None,
        "cost_us": f.cost_us,
        "rules": list(f.rules),
        "knobs": list(f.knobs),
    }
