"""What stops a job, as data: a rule, the setting that it is about, and a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from megatron.bridge.training.decisions import Decision, Outcome, Rule
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.rules.context import Context


@dataclass(frozen=True)
class Refusal:
    """A combination that stops a job.

    Attributes:
        rule: the rule, with the versions that refuse the combination.
        knob: the setting that it is about.
        found: what was found, as the start of a reason; empty where the combination is accepted.
        edits: the remedy as changes of settings, with values and keys that depend on the run; None
            where the rule's own do.
        otherwise: another remedy in words, after `edits`.
    """

    rule: Rule
    knob: str
    found: Callable[[Context], str]
    edits: Callable[[Context], tuple[Edit, ...]] | None = None
    otherwise: str = ""


def refused(c: Context, candidates: Iterable[Refusal]) -> Iterator[Decision]:
    """Every combination that the stack of the run refuses."""
    for each in candidates:
        if each.rule.holds(c.stack) and (found := each.found(c)):
            edits = each.edits(c) if each.edits is not None else None
            remedy = either(edits, each.otherwise) if edits else None
            value = knob_value(c, each.knob)
            yield each.rule.error(each.knob, value, found, remedy, edits or None)


def knob_value(c: Context, knob: str) -> object:
    """A knob's value by its dotted name; None without one."""
    section, _, name = knob.partition(".")
    return getattr(getattr(c, section, None), name, None)


def override(c: Context, by: Rule, knob: str, value: object, reason: str) -> Iterator[Decision]:
    """Set a knob to what a rule of the run's stack makes of it, in place, with a note.

    Nothing happens where the rule does not hold, the configuration has no such field, or the knob
    has the value already.
    """
    section, _, name = knob.partition(".")
    holder = getattr(c, section, None)
    if not by.holds(c.stack) or not hasattr(holder, name):
        return
    former = getattr(holder, name)
    if former == value:
        return
    setattr(holder, name, value)
    yield by.decide(
        knob,
        requested=former,
        effective=value,
        reason=reason,
        outcome=Outcome.NOTE,
        remedy=by.remedy or None,
        edits=by.edits,
    )
