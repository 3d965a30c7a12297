"""What differs between two runs' decisions, and which key caused it.

A cause is found by trial, not by reading rules: keys that differ are copied from the second
configuration to the first, and the rules are applied again. The key that alone brings the second
outcome about is the cause. Where none does alone, the keys that do together are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from megatron.bridge.training.job_environment import ENV_VARS
from megatron.bridge.training.mixed_precision_recipes import mixed_precision_recipe
from overlapkit.config.megatron_lm.flag_words import KeyWords
from overlapkit.config.overrides import BY_NAME
from overlapkit.config.run import Settings
from overlapkit.config.schema import OVERLAP_KNOBS, section_fields
from overlapkit.errors import InputError
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.explain.stack_document import versions_text
from overlapkit.explain.without_effect import WithoutEffect, without_effect
from overlapkit.output.numbers import plain

WORLD_SIZE = "--world-size"
VERSIONS = "--core"
"""The key of the versions, which the option and the files' own fields give."""

Kind = Literal["knob", "env", "finding", "buckets"]


@dataclass(frozen=True)
class Subject:
    """What an outcome is about: a knob, a launch variable, a finding by a rule, or the buckets.

    Attributes:
        kind: which of these.
        knob: dotted; ``env.NAME`` for a launch variable, ``buckets`` for their number.
        rule: the rule of a finding; None for the other kinds.
    """

    kind: Kind
    knob: str
    rule: str | None = None


@dataclass(frozen=True)
class Change:
    """One outcome that differs.

    Attributes:
        of: what the outcome is about.
        before: the outcome in the first run; None where it has none.
        after: the outcome in the second run.
        causes: the keys that brought the change about; empty where no set of keys did.
        reason: why the second run has its outcome; None where no decision says so.
    """

    of: Subject
    before: Any
    after: Any
    causes: tuple[str, ...]
    reason: str | None

    @property
    def knob(self) -> str:
        """Its name among the changes: two rules can decide about one knob."""
        return self.of.knob if self.of.rule is None else f"{self.of.knob} ({self.of.rule})"

    @property
    def restates(self) -> bool:
        """Whether it only repeats a key that is written differently."""
        return self.causes == (self.of.knob,)


@dataclass(frozen=True)
class Difference:
    """What differs between two runs.

    Attributes:
        before, after: the reports of the two.
        keys: every key that differs and can be a cause, with its two values. The key is a dotted
            name, or a section that only one run has.
        changes: the outcomes that differ.
        without_effect: the keys that differ and change nothing of the overlap.
    """

    before: Report
    after: Report
    keys: dict[str, tuple[Any, Any]]
    changes: list[Change]
    without_effect: list[WithoutEffect] = field(default_factory=list)

    @property
    def words(self) -> KeyWords:
        """For what differs: flags where both runs take them."""
        return self.after.words.beside(self.before.words)


@dataclass(frozen=True)
class _Inputs:
    settings: Settings
    world_size: int


def find_difference(
    settings: Sequence[Settings], world_sizes: Sequence[int], assumptions: Assumptions
) -> Difference:
    """Compare two runs.

    Raises:
        InputError: as `explain`, for either of the two.
    """
    a, b = (_Inputs(s, n) for s, n in zip(_comparable(*settings), world_sizes, strict=True))
    before, after = (explain(i.settings, i.world_size, assumptions) for i in (a, b))
    keys = _differing_keys(a, b)
    old, new = outcomes(before), outcomes(after)
    changed = [of for of in old | new if old.get(of) != new.get(of)]

    @cache
    def outcomes_with(copied: frozenset[str]) -> dict[Subject, Any]:
        """The outcomes of the first run with some keys of the second; none where it is invalid."""
        mixed = _copy_keys(a, b, copied)
        try:
            report = explain(mixed.settings, mixed.world_size, assumptions, other_versions=False)
            return outcomes(report)
        except InputError:
            return {}

    def brings(wanted: Iterable[Subject]) -> Callable[[frozenset[str]], bool]:
        return lambda copied: all(outcomes_with(copied).get(of) == new.get(of) for of in wanted)

    # Most keys matter to no outcome: they are dropped once, for all outcomes together.
    every = frozenset(keys)
    reproduced = [of for of in changed if brings([of])(every)]
    relevant = _needed(_by_likelihood(keys), brings(reproduced)) if reproduced else []
    changes = [
        Change(of, old.get(of), new.get(of), _causes(of, relevant, brings([of])), reason)
        for of in changed
        for reason in [_reason(after, of)]
    ]
    causes = {key for change in changes if not change.restates for key in change.causes}
    return Difference(before, after, keys, changes, without_effect(keys, causes, before, after))


def outcomes(report: Report) -> dict[Subject, Any]:
    """What a run ends up with: effective knobs, launch variables, findings, buckets."""
    result = {Subject("knob", knob): plain(value) for knob, value in report.effective.items()}
    result |= {Subject("env", f"env.{v.name}"): v.value for v in report.launch_env}
    result |= {Subject("finding", d.knob, d.rule): d.outcome.value for d in report.findings}
    counted = [d.reason for d in report.decisions if d.rule == "core.bucket-count"]
    result[Subject("buckets", "buckets")] = counted[0] if counted else None
    return result


def _comparable(*settings: Settings) -> list[Settings]:
    """The two settings, with mixed_precision spelt out where only one of them gives it by name."""
    sections = [each.values.get("mixed_precision") or {} for each in settings]
    if len({BY_NAME in section for section in sections}) == 1:
        return list(settings)
    fields = section_fields("mixed_precision")
    defaults = {name: known.default for name, known in fields.items()}
    spelt = []
    for each, section in zip(settings, sections, strict=True):
        if section:
            name = section.get(BY_NAME)
            recipe = mixed_precision_recipe(name, each.stack) if name is not None else {}
            given = {k: v for k, v in section.items() if k in fields}
            values = {**each.values, "mixed_precision": defaults | recipe | given}
            each = replace(each, values=values)
        spelt.append(each)
    return spelt


def _differing_keys(a: _Inputs, b: _Inputs) -> dict[str, tuple[Any, Any]]:
    keys: dict[str, tuple[Any, Any]] = {}
    for section in {**a.settings.values, **b.settings.values}:
        if not section_fields(section) and section != ENV_VARS:
            continue
        old, new = (i.settings.values.get(section) for i in (a, b))
        as_a_section = section in ("comm_overlap", "mixed_precision")
        by_name = (old or {}).get(BY_NAME) != (new or {}).get(BY_NAME)
        if as_a_section and (by_name or (old is None) != (new is None)):
            keys[section] = (_section_value(old), _section_value(new))
            continue
        old, new = old or {}, new or {}
        for key in {**old, **new}:
            # An omitted key has its default, but is not requested: so it does differ.
            if (key in old, old.get(key)) != (key in new, new.get(key)):
                known = section_fields(section).get(key)
                default = known.default if known else None
                keys[f"{section}.{key}"] = (old.get(key, default), new.get(key, default))
    if a.settings.stack != b.settings.stack:
        stacks = [versions_text(i.settings.basis.stack) for i in (a, b)]
        keys[VERSIONS] = stacks[0], stacks[1]
    if a.world_size != b.world_size:
        keys[WORLD_SIZE] = (a.world_size, b.world_size)
    return keys


def _section_value(content: dict[str, Any] | None) -> Any:
    """A section that is given by name is shown as that name."""
    return content[BY_NAME] if content and content.keys() == {BY_NAME} else content


def _by_likelihood(keys: Iterable[str]) -> list[str]:
    """Keys that rarely matter first: where either of two is enough, the first one is dropped."""
    return sorted(keys, key=lambda key: key.rpartition(".")[2] in OVERLAP_KNOBS)


def _needed(keys: Sequence[str], suffice: Callable[[frozenset[str]], bool]) -> list[str]:
    """Keys that are enough together, and of which none can be omitted.

    Halves are tried before single keys, so that a few needed ones among many are found quickly.
    """

    def prune(some: list[str], kept_too: frozenset[str]) -> list[str]:
        """The keys of `some` that are needed, given that `kept_too` are kept."""
        if not some or suffice(kept_too):
            return []
        if len(some) == 1:
            return some
        middle = len(some) // 2
        first, second = some[:middle], some[middle:]
        kept = prune(second, kept_too | frozenset(first))
        return prune(first, kept_too | frozenset(kept)) + kept

    return prune(list(keys), frozenset()) if suffice(frozenset(keys)) else []


def _causes(
    of: Subject, keys: Sequence[str], brings: Callable[[frozenset[str]], bool]
) -> tuple[str, ...]:
    """The one key that brings an outcome about, or the smallest set found that does together.

    Of several such keys, the one with the name of the knob is taken.
    """
    name = of.knob.rpartition(".")[2]
    likely = list(reversed(keys))
    likely.sort(key=lambda key: key.rpartition(".")[2] != name)
    for key in likely:
        if brings(frozenset([key])):
            return (key,)
    return tuple(_needed(keys, brings))


def _copy_keys(a: _Inputs, b: _Inputs, keys: Iterable[str]) -> _Inputs:
    """The first run with some keys of the second."""
    values = {s: None if c is None else dict(c) for s, c in a.settings.values.items()}
    asked = set(a.settings.asked)
    for dotted in keys:
        section, _, key = dotted.partition(".")
        theirs = b.settings.values.get(section)
        if dotted in (WORLD_SIZE, VERSIONS):
            continue
        if not key:
            values[section] = None if theirs is None else dict(theirs)
            asked = {k for k in asked if not k.startswith(f"{section}.")}
            asked |= {k for k in b.settings.asked if k.startswith(f"{section}.")}
            continue
        mine = values.get(section) or {}
        mine.pop(key, None)
        if theirs is not None and key in theirs:
            mine[key] = theirs[key]
        values[section] = mine
        asked = asked - {dotted} | (b.settings.asked & {dotted})
    size = b.world_size if WORLD_SIZE in keys else a.world_size
    settings = replace(a.settings, values=values, asked=frozenset(asked))
    if VERSIONS in keys:
        stack = b.settings
        settings = replace(
            settings,
            stacks=stack.stacks,
            stack_given=stack.stack_given,
            stack_path=stack.stack_path,
        )
    return _Inputs(settings, size)


def _reason(report: Report, of: Subject) -> str | None:
    if of.kind == "env":
        reasons = [v.reason for v in report.launch_env if f"env.{v.name}" == of.knob]
    elif of.kind == "knob":
        reasons = [d.reason for d in report.decisions if d.knob == of.knob]
    elif of.kind == "finding":
        reasons = [d.reason for d in report.findings if (d.knob, d.rule) == (of.knob, of.rule)]
    else:
        reasons = []
    return reasons[0] if reasons else None
