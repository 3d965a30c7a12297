"""Time that several diagnoses count.

Communication can be exposed for several reasons at once: two dimensions communicate at the same
time, or a cause explains a part of what another diagnosis measures as a whole. Each diagnosis says
which others count some of its time, so that nobody adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations

from overlapkit.trace.diagnose.diagnosis import Case, Counted, Diagnosis
from overlapkit.trace.intervals import both

LEAST = 0.01
"""Share of the cheaper of two diagnoses from which the time that both count is worth a word."""


def with_shared(found: Sequence[Diagnosis], case: Case) -> list[Diagnosis]:
    """The diagnoses of a rank, each with the time that others count too.

    Time of a diagnosis that estimates its cost is known only as the set that the cost is a part of,
    so what two share is an upper bound.
    """
    shared: dict[str, dict[str, float]] = {d.id: {} for d in found}
    for one, other in combinations([d for d in found if isinstance(d, Counted)], 2):
        common = case.per_step_us(both(one.time, other.time).total) + min(
            one.slowed_us, other.slowed_us
        )
        note_shared(shared, one, other, common)
    return [
        Diagnosis(**{f.name: getattr(d, f.name) for f in fields(Diagnosis)} | {"shared_us": shares})
        for d, shares in zip(found, shared.values(), strict=True)
    ]


def note_shared(
    shared: dict[str, dict[str, float]], one: Diagnosis, other: Diagnosis, common_us: float
) -> None:
    """Note for two diagnoses the time that both count, if it is worth a word."""
    least = min(one.cost_us, other.cost_us)
    common = round(min(common_us, least), 3)
    if common > LEAST * least:
        shared[one.id][other.id] = shared[other.id][one.id] = common
