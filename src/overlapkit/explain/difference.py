"""What differs between two runs' decisions, and which key caused it.

A cause is found by trial, not by reading rules: one differing key after the other is carried from
the second configuration to the first, and the rules are applied again. The key that alone brings
the second outcome about is the cause; where none does alone, the keys that together do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.text import Text

from overlapkit.config.run import Settings
from overlapkit.config.schema import OVERLAP_KNOBS
from overlapkit.errors import InputError
from overlapkit.explain.render import short, show_findings
from overlapkit.explain.report import (
    Assumptions,
    Report,
    decision_json,
    explain,
    plain,
)

SCHEMA = "overlapkit/explain-difference/v1"
WORLD_SIZE = "--world-size"
_ABSENT = object()


@dataclass(frozen=True)
class Change:
    """One outcome that differs.

    Attributes:
        knob: dotted knob, ``env.NAME`` for a launch variable, ``buckets`` for their number.
        before: its value in the first run.
        after: its value in the second.
        causes: the keys whose change brought it about.
        reason: why the second run has its value; None where no decision tells.
    """

    knob: str
    before: Any
    after: Any
    causes: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True)
class Difference:
    """Two runs held against each other.

    Attributes:
        before, after: the reports of the two.
        keys: every differing key: dotted name to its two values.
        changes: the outcomes that differ.
    """

    before: Report
    after: Report
    keys: dict[str, tuple[Any, Any]]
    changes: list[Change]


@dataclass(frozen=True)
class _Inputs:
    settings: Settings
    world_size: int


def find_difference(
    settings: Sequence[Settings], world_sizes: Sequence[int], assumptions: Assumptions
) -> Difference:
    """Hold two runs against each other.

    Raises:
        InputError: as `explain`, for either of the two.
    """
    a, b = (_Inputs(s, n) for s, n in zip(settings, world_sizes, strict=True))
    before, after = (explain(i.settings, i.world_size, assumptions) for i in (a, b))
    keys = _differing_keys(a, b)
    outcomes_before, outcomes_after = outcomes(before), outcomes(after)

    def outcome_with(knob: str, carried: Sequence[str]) -> Any:
        """The outcome of the first run with some keys as in the second."""
        try:
            mixed = _carry(a, b, carried)
            return outcomes(explain(mixed.settings, mixed.world_size, assumptions)).get(knob)
        except InputError:
            return _ABSENT

    changes = []
    for knob in outcomes_before | outcomes_after:
        old, new = outcomes_before.get(knob), outcomes_after.get(knob)
        if old == new:
            continue
        causes: tuple[str, ...] = (knob,) if knob in keys else ()
        causes = _causes(knob, new, _candidates(keys), outcome_with) or causes
        changes.append(Change(knob, old, new, causes, _reason(after, knob)))
    return Difference(before, after, keys, changes)


def outcomes(report: Report) -> dict[str, Any]:
    """What a run ends up with: effective knobs, launch variables, the number of buckets."""
    result = {knob: plain(value) for knob, value in report.effective.items()}
    result |= {f"env.{v.name}": v.value for v in report.launch_env}
    result |= {
        f"{d.knob} ({d.outcome.value} {d.rule})": d.outcome.value
        for d in report.decisions
        if d.is_finding
    }
    result["buckets"] = next(
        (d.reason for d in report.decisions if d.rule == "core.bucket-count"), None
    )
    return result


def _differing_keys(a: _Inputs, b: _Inputs) -> dict[str, tuple[Any, Any]]:
    flat_a, flat_b = a.settings.flat(), b.settings.flat()
    keys = {
        key: (flat_a.get(key), flat_b.get(key))
        for key in {**flat_a, **flat_b}
        if flat_a.get(key, _ABSENT) != flat_b.get(key, _ABSENT)
    }
    if a.world_size != b.world_size:
        keys[WORLD_SIZE] = (a.world_size, b.world_size)
    return keys


def _candidates(keys: Mapping[str, Any]) -> list[str]:
    """Differing keys, a whole section as one; overlap knobs first, since they cause most."""
    sections = {key.partition(".")[0] for key in keys if "." not in key and key != WORLD_SIZE}
    single = [k for k in keys if k.partition(".")[0] not in sections]
    single.sort(key=lambda k: k.rpartition(".")[2] not in OVERLAP_KNOBS)
    return [*sorted(sections), *single]


def _causes(
    knob: str, wanted: Any, candidates: Sequence[str], outcome: Callable[[str, Sequence[str]], Any]
) -> tuple[str, ...]:
    """The smallest set of keys found that brings `wanted` about: one key, else a pruned set."""
    for key in candidates:
        if outcome(knob, [key]) == wanted:
            return (key,)
    if outcome(knob, candidates) != wanted:
        return ()
    # Drop each key that is not needed: what is left brings it about, and less does not.
    needed = list(candidates)
    for key in candidates:
        fewer = [k for k in needed if k != key]
        if outcome(knob, fewer) == wanted:
            needed = fewer
    return tuple(needed)


def _carry(a: _Inputs, b: _Inputs, keys: Sequence[str]) -> _Inputs:
    values = {s: None if c is None else dict(c) for s, c in a.settings.values.items()}
    asked = set(a.settings.asked)
    for dotted in keys:
        if dotted == WORLD_SIZE:
            continue
        section, _, key = dotted.partition(".")
        theirs = b.settings.values.get(section)
        if not key or theirs is None:
            values[section] = None if theirs is None else dict(theirs)
            asked -= {k for k in asked if k.startswith(f"{section}.")}
            asked |= {k for k in b.settings.asked if k.startswith(f"{section}.")}
            continue
        mine = values.get(section)
        if mine is None:
            mine = values[section] = {}
        mine.pop(key, None)
        asked.discard(dotted)
        if key in theirs:
            mine[key] = theirs[key]
        if dotted in b.settings.asked:
            asked.add(dotted)
    size = b.world_size if WORLD_SIZE in keys else a.world_size
    return _Inputs(replace(a.settings, values=values, asked=frozenset(asked)), size)


def _reason(report: Report, knob: str) -> str | None:
    name = knob.partition(" ")[0]
    if name.startswith("env."):
        told = [v.reason for v in report.launch_env if f"env.{v.name}" == name]
    else:
        told = [d.reason for d in report.decisions if d.knob == name]
    return told[0] if told else None


def difference_json(difference: Difference) -> dict[str, Any]:
    """The difference as the JSON interface `overlapkit/explain-difference/v1` (docs/json.md)."""
    return {
        "schema": SCHEMA,
        "before": _side(difference.before),
        "after": _side(difference.after),
        "changes": [
            {
                "knob": c.knob,
                "before": plain(c.before),
                "after": plain(c.after),
                "causes": [{"key": key, **_values(difference.keys, key)} for key in c.causes],
                "reason": c.reason,
            }
            for c in difference.changes
        ],
    }


def _side(report: Report) -> dict[str, Any]:
    return {
        "config": report.source,
        "world_size": report.world_size,
        "findings": [decision_json(d) for d in report.findings],
    }


def _values(keys: Mapping[str, tuple[Any, Any]], key: str) -> dict[str, Any]:
    old, new = keys.get(key, (None, None))
    return {"before": plain(old), "after": plain(new)}


def show_difference(difference: Difference, console: Console) -> None:
    """Every changed outcome with its cause, then the findings of the second run."""
    before, after = difference.before, difference.after
    console.print(
        Text.assemble(
            (before.source, "bold"),
            f" ({before.world_size}) -> ",
            (after.source, "bold"),
            f" ({after.world_size})",
        )
    )
    if not difference.changes:
        console.print("No decision differs: the overlap in effect is the same.")
    for change in difference.changes:
        console.print(
            Text.assemble(
                "\n", (change.knob, "bold"), f"  {short(change.before)} -> {short(change.after)}"
            )
        )
        for key in change.causes:
            old, new = difference.keys.get(key, (None, None))
            console.print(Text(f"  because of {key}: {short(old)} -> {short(new)}", "cyan"))
        if change.reason:
            console.print(Text(f"  {change.reason.rstrip('.')}"))
    console.print()
    show_findings(after, console)
