"""The findings of a configuration, mended one after the other until none is left that can be.

A change may end several findings, and may bring another. It is kept only where its finding goes,
and where every finding that it brings can be mended too, or is a lesser one. Otherwise the
configuration stays as it was before the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.edits import ENV
from overlapkit.config.megatron_lm.flag_words import KEYS, KeyWords
from overlapkit.config.places import Place
from overlapkit.config.run import Settings
from overlapkit.errors import InputError
from overlapkit.explain.report import SEVERITY, Report
from overlapkit.fix.splice import CannotEdit
from overlapkit.fix.target import Target

_MOST_STEPS = 60
_DEEPEST = 4
"""Findings that one change may bring after the other."""
UNSET = object()
"""The value of a key that is not set."""

Judge = Callable[[Settings], Report]
Key = tuple[str, str]


@dataclass(frozen=True)
class Change:
    """One key that was changed.

    Attributes:
        key: dotted, as in `Edit`.
        old: its value before; `UNSET` where it was not set.
        new: its value now; `UNSET` where it is set no longer.
        place: where it is, or was.
    """

    key: str
    old: Any
    new: Any
    place: Place | None


@dataclass(frozen=True)
class Fix:
    """What became of one finding.

    Attributes:
        decision: the finding.
        changes: what was changed for it; empty where it went with the change for another, and where
            it is left.
        why: why it is left; empty where it is gone.
    """

    decision: Decision
    changes: tuple[Change, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Mended:
    """A configuration after every change that can be made.

    Attributes:
        before, after: the configuration.
        report: on it afterwards.
        fixes: every finding that is gone, in order, and then those that are left.
        words: for its settings before and after.
    """

    before: Target
    after: Target
    report: Report
    fixes: tuple[Fix, ...]
    words: KeyWords = KEYS

    @property
    def fixed(self) -> list[Fix]:
        """The findings that are gone."""
        return [fix for fix in self.fixes if not fix.why]

    @property
    def left(self) -> list[Fix]:
        """The findings that are left."""
        return [fix for fix in self.fixes if fix.why]

    @property
    def is_changed(self) -> bool:
        """Whether the configuration is another one."""
        return self.after != self.before


@dataclass(frozen=True)
class _State:
    target: Target
    settings: Settings
    report: Report

    @property
    def found(self) -> dict[Key, Decision]:
        return {_key(d): d for d in reversed(self.report.findings)}


def _key(decision: Decision) -> Key:
    return decision.rule, decision.knob


def mend(target: Target, judge: Judge) -> Mended:
    """A configuration with every finding mended that its own file can mend.

    Args:
        target: the configuration.
        judge: the report on settings.

    Raises:
        InputError: it cannot be read.
    """
    settings = target.read()
    state = first = _State(target, settings, judge(settings))
    fixes: list[Fix] = []
    why: dict[Key, str] = {}
    for _ in range(_MOST_STEPS):
        todo = [d for d in state.report.findings if _key(d) not in why]
        if not todo:
            break
        try:
            state, more = _step(state, todo[0], judge)
        except CannotEdit as error:
            why[_key(todo[0])] = str(error)
        else:
            fixes += more
            # What could not be mended before may be mended now.
            why.clear()
    mended = {_key(fix.decision) for fix in fixes}
    fixes += [
        Fix(d)
        for d in first.report.findings
        if _key(d) not in mended and _key(d) not in state.found
    ]
    fixes = _net(fixes, first.settings, state.settings)
    left = [Fix(d, (), why.get(_key(d), "too many changes")) for d in state.report.findings]
    words = first.report.words.beside(state.report.words)
    return Mended(target, state.target, state.report, (*fixes, *left), words)


def _step(
    state: _State, decision: Decision, judge: Judge, chain: tuple[Key, ...] = ()
) -> tuple[_State, list[Fix]]:
    """One finding mended, and those that the change for it brings.

    Raises:
        CannotEdit: it cannot be, and why.
    """
    if not decision.edits:
        raise CannotEdit(f"no change of settings is known for it; {decision.remedy or 'no remedy'}")
    target, settings = state.target.edited(state.settings, decision.edits)
    try:
        now = _State(target, settings, judge(settings))
    except InputError as error:
        raise CannotEdit(f"it would be refused then: {error}") from None
    keys = (edit.key for edit in decision.edits)
    changes = (_change(key, state.settings, settings) for key in keys)
    fixes = [Fix(decision, tuple(c for c in changes if c is not None))]
    borne: set[Key] = set()
    while True:
        if _key(decision) in now.found:
            raise CannotEdit(
                "the finding stays after the change"
                if len(fixes) == 1
                else "what the change brings cannot be mended without it"
            )
        brought = [d for key, d in now.found.items() if key not in {*state.found, *borne}]
        if not brought:
            return now, fixes
        inner = brought[0]
        problem = f"its change brings {inner.rule} ({inner.reason.rstrip('.')})"
        if _key(inner) in chain or len(chain) >= _DEEPEST or len(fixes) > _MOST_STEPS:
            raise CannotEdit(f"its change brings {inner.rule}")
        try:
            now, more = _step(now, inner, judge, (*chain, _key(decision)))
        except CannotEdit as error:
            if not _is_lesser(inner, decision):
                raise CannotEdit(f"{problem}, for which: {error}") from None
            borne.add(_key(inner))
            continue
        fixes += more


def _is_lesser(brought: Decision, mended: Decision) -> bool:
    """Whether a finding that cannot be mended is to be borne for having another mended."""
    weights = SEVERITY.index(brought.outcome) - SEVERITY.index(mended.outcome)
    # What the job's environment lacks is for whoever starts the job.
    return weights > 0 or (weights == 0 and brought.knob.startswith(ENV))


def _change(key: str, before: Settings, after: Settings) -> Change | None:
    old, new = _value(before, key), _value(after, key)
    if old is new or (type(old) is type(new) and old == new):
        return None
    return Change(key, old, new, before.where.get(key))


def _value(settings: Settings, key: str) -> Any:
    """The value of a key as it is set."""
    section, *names = key.split(".")
    if key.startswith(ENV):
        name = key.removeprefix(ENV)
        launched = settings.launch.environment if settings.launch is not None else {}
        return launched.get(name, (settings.values.get("env_vars") or {}).get(name, UNSET))
    value: Any = settings.values.get(section)
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return UNSET
        value = value[name]
    if settings.launch is not None and ".".join((section, names[0])) not in settings.asked:
        # A default that was filled in.
        return UNSET
    return value


def _net(fixes: list[Fix], before: Settings, after: Settings) -> list[Fix]:
    """The fixes with what is changed in the end: a key that was changed twice is said once, and
    one that has its former value not at all; with the places that the keys have in the end."""
    last = {c.key: n for n, fix in enumerate(fixes) for c in fix.changes}
    result = []
    for number, fix in enumerate(fixes):
        changes = []
        for c in fix.changes:
            net = _change(c.key, before, after) if last[c.key] == number else None
            if net is not None:
                changes.append(replace(net, place=after.where.get(c.key, net.place)))
        result.append(replace(fix, changes=tuple(changes)))
    return result
