"""In which order a report is read: what leads it, and what the rest says once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron.bridge.training.decisions import RULES, Decision, Dimension, Outcome
from megatron.bridge.training.edits import ENV
from overlapkit.explain.report import Report


@dataclass(frozen=True)
class Said:
    """Decisions of one dimension that have their outcome and reason in common.

    Attributes:
        decisions: at least one, in order.
        reason: theirs; empty where the report has said it before.
        leads: whether they are among what leads the report, with reason and remedy.
    """

    decisions: tuple[Decision, ...]
    reason: str
    leads: bool

    @property
    def first(self) -> Decision:
        """Any of them: for what they have in common."""
        return self.decisions[0]

    @property
    def rules(self) -> list[str]:
        """The rules that decided, each once."""
        return list(dict.fromkeys(d.rule for d in self.decisions))


def leading(report: Report) -> list[Decision]:
    """What leads a report: its findings, the worst first, then the notes with advice."""
    return [*report.findings, *notes_with_advice(report)]


def notes_with_advice(report: Report) -> list[Decision]:
    """The notes that name something to do: known faults first, the launch environment last."""
    notes = [d for d in report.decisions if d.outcome is Outcome.NOTE and advises(d)]
    return sorted(notes, key=lambda d: (not is_fault(d), d.dimension is Dimension.LAUNCH))


def is_fault(decision: Decision) -> bool:
    """Whether a decision is no finding, and about a known fault of its version all the same."""
    return decision.outcome is Outcome.NOTE and RULES[decision.rule].is_bug


def faults(report: Report) -> list[Decision]:
    """The notes on known faults of the versions of a run."""
    return [d for d in report.decisions if is_fault(d)]


def alike(decisions: Iterable[Decision]) -> list[list[Decision]]:
    """Decisions that say the same of several variables together: only the name differs."""
    groups: dict[tuple[object, ...], list[Decision]] = {}
    for number, d in enumerate(decisions):
        name = d.knob.removeprefix(ENV)
        key: tuple[object, ...] = (number,)
        if d.outcome is Outcome.NOTE and name != d.knob:
            texts = (text.replace(name, "") for text in (d.reason, d.remedy or ""))
            key = (d.rule, *texts)
        groups.setdefault(key, []).append(d)
    return list(groups.values())


def advises(decision: Decision) -> bool:
    """Whether its remedy is worth showing: a default that precision overwrites is no problem."""
    return bool(decision.remedy) and (
        decision.is_finding or not decision.certain or decision.dimension is not Dimension.PRECISION
    )


def said_once(
    decisions: Iterable[Decision], lead: Iterable[Decision], before: set[str]
) -> list[Said]:
    """The decisions of one dimension, those with the same reason together.

    Args:
        decisions: of the dimension.
        lead: what leads the report.
        before: the reason of everything that the report has said; what is said here is added.
    """
    leads = {id(d) for d in lead}
    groups: dict[tuple[object, ...], list[Decision]] = {}
    for d in decisions:
        led = id(d) in leads
        # What leads the report is referred to, each by itself.
        key = (id(d),) if led else (d.outcome, d.reason)
        groups.setdefault(key, []).append(d)
    result = []
    for group in groups.values():
        first = group[0]
        leads_report = id(first) in leads
        reason = "" if leads_report or first.reason in before else first.reason
        before.add(first.reason)
        result.append(Said(tuple(group), reason, leads_report))
    return result
