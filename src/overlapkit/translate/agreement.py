"""What explain says differently of a run and of its translation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from megatron.bridge.training.decisions import RULES, Decision
from overlapkit.config.effective import FRAMEWORKS, knob_value
from overlapkit.config.emit.megatron_lm_flags import same_in_effect
from overlapkit.config.run import Framework, Settings
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.output.numbers import plain

Kind = Literal["knob", "env", "finding"]


@dataclass(frozen=True)
class Disagreement:
    """One thing that explain says differently of the two.

    Attributes:
        kind: an effective knob, a variable that the job needs, or a finding of only one of them.
        key: dotted; ``env.NAME`` for a variable.
        before: its value in the origin; for a finding its outcome, None where it has none.
        after: the same in the translation.
        reason: why, where a decision says so; empty otherwise.
        rule: of a finding; None for the other kinds.
        framework: the one whose own rule it is; None where the rule is of both.
        rule_before: the origin's rule, where another one finds the same knob at fault there.
    """

    kind: Kind
    key: str
    before: Any
    after: Any
    reason: str = ""
    rule: str | None = None
    framework: Framework | None = None
    rule_before: str | None = None

    @property
    def is_frameworks(self) -> bool:
        """Whether the frameworks differ, and not what the two runs are."""
        return self.framework is not None

    @property
    def sentence(self) -> str:
        """It in one line."""
        why = f": {self.reason.rstrip('.')}" if self.reason else ""
        if self.kind != "finding":
            return f"{self.key} {_text(self.before)} -> {_text(self.after)}{why}"
        if self.rule_before is not None:
            rules = f"{self.before} by {self.rule_before} -> {self.after} by {self.rule}"
            return f"{self.key} {rules}{why}"
        where = "only here" if self.before is None else "only in the origin"
        own = f", a rule of {FRAMEWORKS[self.framework]} alone" if self.framework else ""
        return f"{self.after or self.before} {self.key} {where} ({self.rule}{own}){why}"


def compare_reports(
    before: Settings, after: Settings, world_size: int, assumptions: Assumptions
) -> list[Disagreement]:
    """Explain both, and list what differs.

    Raises:
        InputError: as `explain`.
    """
    old, new = (
        explain(each, world_size, assumptions, other_versions=False) for each in (before, after)
    )
    return [*_knobs(old, new), *_variables(old, new), *_findings(old, new)]


def _knobs(old: Report, new: Report) -> Iterator[Disagreement]:
    for knob, value in old.effective.items():
        mine, theirs = knob_value(old.run, knob), knob_value(new.run, knob)
        if value == new.effective[knob] or same_in_effect(knob, old.run, mine, theirs):
            continue
        if value in (None, False) and new.effective[knob] in (None, False):
            continue
        reasons = [d.reason for d in new.decisions if d.knob == knob]
        reasons += [d.reason for d in old.decisions if d.knob == knob]
        reason = reasons[0] if reasons else ""
        yield Disagreement("knob", knob, plain(value), plain(new.effective[knob]), reason)


def _variables(old: Report, new: Report) -> Iterator[Disagreement]:
    needs = [{v.name: v.value for v in each.launch_env} for each in (old, new)]
    for name in {**needs[0], **needs[1]}:
        before, after = (each.get(name) for each in needs)
        if before != after:
            yield Disagreement("env", f"env.{name}", before, after, "what the job needs")


def _findings(old: Report, new: Report) -> Iterator[Disagreement]:
    found = [{(d.knob, d.rule, d.outcome): d for d in each.findings} for each in (old, new)]
    only = [
        [decision for key, decision in found[n].items() if key not in found[1 - n]] for n in (0, 1)
    ]
    by_knob = {d.knob: d for d in only[1]}
    for before in only[0]:
        # Both frameworks object to it, each by a rule of its own.
        after = by_knob.pop(before.knob, None)
        yield _finding(before, after)
    for after in by_knob.values():
        yield _finding(None, after)


def _finding(before: Decision | None, after: Decision | None) -> Disagreement:
    decision = after or before
    assert decision is not None
    framework = _framework_of(decision)
    if before is not None and after is not None:
        framework = framework or _framework_of(before)
    return Disagreement(
        "finding",
        decision.knob,
        None if before is None else before.outcome.value,
        None if after is None else after.outcome.value,
        decision.reason,
        decision.rule,
        framework,
        None if before is None or after is None else before.rule,
    )


def _framework_of(decision: Decision) -> Framework | None:
    """The framework whose rule alone decided; None for a rule of both."""
    declared = RULES[decision.rule]
    if declared.id.startswith("lm."):
        return "megatron-lm"
    of_bridge = any(each.package == "bridge" for each in declared.versions)
    return "megatron-bridge" if declared.id.startswith("bridge.") or of_bridge else None


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{...}"
    return {True: "true", False: "false", None: "null"}.get(value, str(value))
