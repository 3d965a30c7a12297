"""A finding of the doctor, and the order of findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal[
    "exposed", "stops", "packages", "environment", "refused", "hardware", "off", "profile"
]

ORDER: tuple[Kind, ...] = (
    "exposed",
    "stops",
    "packages",
    "environment",
    "refused",
    "hardware",
    "off",
    "profile",
)
"""Most likely first: what a profile measures as exposed communication; then, not measured, what
keeps the job from starting or makes it train wrongly; what breaks this installation; an environment
that takes all overlap of a kind away; what was asked for and is refused; missing hardware; what
nobody asked for. Time that a profile finds lost elsewhere (idle, copies, slowed kernels) comes
last. Within a kind the costliest comes first."""

MOST = 5
"""Findings that are told."""

Source = Literal["profile", "configuration", "environment", "packages", "hardware"]


class Evidence(NamedTuple):
    """What a finding rests on, and where that was seen."""

    source: Source
    text: str


@dataclass(frozen=True)
class Finding:
    """One cause of communication that is not hidden.

    Attributes:
        id: stable name: the profile's diagnosis, or the rule that decided.
        kind: see `ORDER`.
        message: what is so, in one sentence.
        evidence: what it rests on.
        remedy: what to do.
        cost_us: exposed or lost time per step that the profile measures for it; None without.
        rules: rules of `explain` that speak of it.
        knobs: what they decide about.
    """

    id: str
    kind: Kind
    message: str
    evidence: tuple[Evidence, ...]
    remedy: str
    cost_us: float | None = None
    rules: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ()


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Most likely first: by kind, and by measured time within it."""
    return sorted(findings, key=lambda f: (ORDER.index(f.kind), -(f.cost_us or 0.0)))
