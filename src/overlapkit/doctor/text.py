"""The examination as plain lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from overlapkit.doctor.environment import shown_variables
from overlapkit.doctor.examine import Examination, configuration_told, profile_told
from overlapkit.doctor.finding import MOST, Finding
from overlapkit.output.numbers import imperative

if TYPE_CHECKING:
    pass


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
