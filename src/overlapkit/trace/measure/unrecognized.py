"""Kernels that may communicate, and count as compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from overlapkit.output.numbers import ms_of_us, us_of_ns
from overlapkit.trace.intervals import Spans, both, union
from overlapkit.trace.measure.step_times import WorkSpans
from overlapkit.trace.read.comm_libraries import is_fused, is_suspicious
from overlapkit.trace.read.device_work import COMPUTE
from overlapkit.trace.read.kernel_names import function_of, short
from overlapkit.trace.read.stated import Stated

Reason = Literal["name", "fused"]
"""Its name speaks of communication; or it computes and communicates at once."""

NOTABLE = 0.001
"""Share of the measured time from which such kernels are mentioned."""


@dataclass(frozen=True)
class Unrecognized:
    """A kernel that may communicate.

    Attributes:
        name: its shortened name.
        reason: why it is listed.
        count: how many ran.
        busy_ns: the time that they cover, in nanoseconds.
    """

    name: str
    reason: Reason
    count: int
    busy_ns: int


def unrecognized(m: WorkSpans, scope: Spans) -> list[Unrecognized]:
    """The compute kernels in the scope that may communicate, the longest first."""
    work = m.work
    compute = work.kind == COMPUTE
    chosen: dict[tuple[str, Reason], list[int]] = {}
    for number in np.flatnonzero(np.bincount(work.name[compute])).tolist():
        reason = _reason(work.names[number])
        if reason is not None:
            chosen.setdefault((short(work.names[number]), reason), []).append(number)
    result = []
    for (name, reason), numbers in chosen.items():
        events = np.flatnonzero(compute & np.isin(work.name, numbers))
        busy = both(union(work.start[events], work.end[events]), scope)
        inside = scope.within(work.start[events], work.start[events] + 1) > 0
        if len(busy):
            result.append(Unrecognized(name, reason, int(inside.sum()), busy.total))
    return sorted(result, key=lambda u: (-u.busy_ns, u.name))


def _reason(name: str) -> Reason | None:
    if is_fused(name):
        return "fused"
    return "name" if is_suspicious(function_of(name)) else None


def remarks(found: Sequence[Unrecognized], scope: Spans) -> list[str]:
    """What to say of such kernels."""
    said = []
    notable = [u for u in found if u.busy_ns >= NOTABLE * scope.total]
    for reason, text in (
        (
            "name",
            "look like communication but are of no known library, and count as compute; "
            "--comm REGEX counts them as communication",
        ),
        ("fused", "compute and communicate at once, and count as compute"),
    ):
        kernels = [u for u in notable if u.reason == reason]
        if kernels:
            time = ms_of_us(us_of_ns(sum(u.busy_ns for u in kernels)))
            names = ", ".join(u.name for u in kernels[:3])
            more = f" and {len(kernels) - 3} others" if len(kernels) > 3 else ""
            said.append(f"{time} ms of kernels ({names}{more}) {text}")
    return said


def effects(stated: Stated, m: WorkSpans) -> list[str]:
    """What follows from that which the user says, and what of it matches nothing in a file."""
    work = m.work
    said: list[str] = []
    if not (stated.kernels or stated.groups):
        return said
    used = np.flatnonzero(np.bincount(work.name)).tolist() if stated.kernels else []
    for kernels in stated.kernels:
        names = [short(work.names[n]) for n in used if kernels.regex.search(work.names[n])]
        found = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
        what = f"{found}: communication, as stated" if names else "matches no kernel"
        said.append(f"--comm {kernels.text}: {what}")
    listed = [(g.description, g.name, g.size) for g in work.groups]
    listed += [(c.description or "", c.group or "", c.group_size or 0) for c in work.calls]
    for group in stated.groups:
        if any(group.matches(a, b, size=size) for a, b, size in listed):
            continue
        hint = ""
        if group.name.isdecimal() and any(size == int(group.name) for _, _, size in listed):
            hint = f"; groups of {group.name} ranks are size:{group.name}={group.dimension}"
        said.append(f"--group {group.text}: no process group has this name or size{hint}")
    return said
