"""Keys that differ between two runs and change nothing of the overlap, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.bridge.training.decisions import Decision, Outcome
from overlapkit.explain.report import Report
from overlapkit.output.numbers import plain, setting_text


@dataclass(frozen=True)
class WithoutEffect:
    """A key that differs, and of what it has no effect on.

    Attributes:
        key: dotted.
        before, after: its value in each run; its default where it is not written.
        reason: why nothing follows.
    """

    key: str
    before: Any
    after: Any
    reason: str


def without_effect(
    keys: Mapping[str, tuple[Any, Any]], causes: Iterable[str], before: Report, after: Report
) -> list[WithoutEffect]:
    """The keys that differ and bring no change about, as far as a reason is known.

    Args:
        keys: every key that differs, with its two values.
        causes: the keys that brought a change about, other than their own value.
        before, after: the two runs.
    """
    told = set(causes)
    found = []
    for key, (old, new) in keys.items():
        if plain(old) == plain(new):
            continue
        # Another size of buckets is in effect, and may divide the parameters all the same.
        sized = key.rpartition(".")[2] == "bucket_size"
        reason = _same_buckets(before, after) if sized else ""
        if not reason and key not in told:
            reason = _reason(key, before, after)
        if reason:
            found.append(WithoutEffect(key, old, new, reason))
    return found


def _reason(key: str, before: Report, after: Report) -> str:
    """Why a key without effect has none; empty where that is not known."""
    name = key.rpartition(".")[2]
    knobs = [knob for knob in after.effective if knob.rpartition(".")[2] == name]
    for knob in knobs:
        if plain(before.effective.get(knob)) != plain(after.effective[knob]):
            return ""
    for report in (after, before):
        replaced = [d for d in report.decisions if d.knob in (key, *knobs) and _replaces(d)]
        if replaced:
            return replaced[0].reason.rstrip(".")
    if knobs:
        words = after.words.beside(before.words)
        value = after.effective[knobs[0]]
        if words.value(key, value) != value:
            # A flag that turns it off is passed in one of them.
            return f"{key} is {setting_text(value)} in both"
        return f"{setting_text(value)} is in effect in both"
    return ""


def _replaces(decision: Decision) -> bool:
    """Whether the run has another value than the one that was set."""
    return decision.requested is not None and (
        decision.outcome is Outcome.REFUSED or decision.requested != decision.effective
    )


def _same_buckets(before: Report, after: Report) -> str:
    """That two runs have the same buckets; empty where they do not, or that is not known."""
    if isinstance(before.buckets, str) or isinstance(after.buckets, str):
        return ""
    each = [
        [(b.parameters, b.first, b.last) for c in r.buckets.chunks for b in c.buckets]
        for r in (before, after)
        if not isinstance(r.buckets, str)
    ]
    if each[0] != each[1]:
        return ""
    number = len(after.buckets.chunks[0].buckets) if after.buckets.chunks else 0
    return f"the same {number} bucket{'s' * (number != 1)} on the first pipeline stage"
