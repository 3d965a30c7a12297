"""Decisions by what caused them, so that one cause explains a change once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlapkit.trace.compare.comparison import DecisionChange, Explanation


@dataclass(frozen=True)
class Cause:
    """Decisions that the same configuration keys brought about.

    Attributes:
        keys: the keys; the knob itself where none is known.
        decisions: the decisions; the first is about the key itself where one is, and else explains
            most.
        explains: the changed parts that any of them acts on, the largest first. Operations of a
            dimension are left out where a decision acts on all of it.
    """

    keys: tuple[str, ...]
    decisions: tuple[DecisionChange, ...]
    explains: tuple[Explanation, ...]


def by_cause(decisions: Sequence[DecisionChange]) -> list[Cause]:
    """The decisions by their causes, those that explain most first."""
    groups: dict[tuple[str, ...], list[DecisionChange]] = {}
    for decision in decisions:
        groups.setdefault(decision.causes or (decision.knob,), []).append(decision)
    causes = [
        Cause(keys, tuple(sorted(of, key=lambda d: (d.knob,) != keys)), _explained(of))
        for keys, of in groups.items()
    ]
    return sorted(causes, key=lambda c: -max((abs(e.change) for e in c.explains), default=0.0))


def _explained(decisions: Sequence[DecisionChange]) -> tuple[Explanation, ...]:
    found = dict.fromkeys(e for d in decisions for e in d.explains)
    whole = {(e.part, e.dimension) for e in found if not e.operations}

    def is_part_of_another(e: Explanation) -> bool:
        if e.dimension is None:
            return False
        return (e.part, None) in whole or (bool(e.operations) and (e.part, e.dimension) in whole)

    kept = [e for e in found if not is_part_of_another(e)]
    return tuple(sorted(kept, key=lambda e: -abs(e.change)))
