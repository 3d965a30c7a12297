"""A finding of doctor, and the order of findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal[
    "wrong-numbers",
    "exposed",
    "stops",
    "packages",
    "environment",
    "refused",
    "hardware",
    "off",
    "profile",
]

KINDS: dict[Kind, str] = {
    "wrong-numbers": "the job trains on wrong numbers, and nothing reports it",
    "exposed": "the profile measures exposed communication for it",
    "stops": "the job does not start like this",
    "packages": "the installation disables overlap, or breaks overlapkit",
    "environment": "an environment variable disables overlap",
    "refused": "requested, and not in effect",
    "hardware": "the GPUs here lack what the layout needs",
    "off": "not requested, or on without hiding anything",
    "profile": "the profile finds time lost elsewhere: idle, copies, slowed kernels",
}
"""What each kind means. Their order is that of the findings: the most likely cause first."""

MOST = 5
"""Findings that are shown."""

Source = Literal["profile", "configuration", "environment", "packages", "hardware"]


class Evidence(NamedTuple):
    """What a finding is based on, and where that was found."""

    source: Source
    text: str


@dataclass(frozen=True)
class Finding:
    """One cause of communication that is not hidden.

    Attributes:
        id: stable name: that of the profile's diagnosis, the rule that decided, or doctor's own.
        kind: see `KINDS`.
        message: what is wrong, in one sentence.
        evidence: what it is based on.
        remedy: what to do.
        cost_us: exposed or lost time per step, in microseconds, that the profile measures for it;
            None without a profile.
        rules: rules of `explain` that apply.
        knobs: the knobs that those rules decide.
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
    order = list(KINDS)
    return sorted(findings, key=lambda f: (order.index(f.kind), -(f.cost_us or 0.0)))
