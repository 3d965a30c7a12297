"""The diagnoses of several ranks, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from overlapkit.output.numbers import us_of_ns
from overlapkit.trace.diagnose.bandwidth import OF_COMMUNICATION
from overlapkit.trace.diagnose.diagnosis import Diagnosis
from overlapkit.trace.diagnose.shared_time import note_shared
from overlapkit.trace.rank_report import RankReport
from overlapkit.trace.ranks import Across, steps_by_rank

MOSTLY = 0.5
"""Share of what collectives take too long that is waiting, from which the link is not the cause."""

EXPOSED = OF_COMMUNICATION | {"exposed-communication"}
"""Diagnoses whose time can be waiting for another rank."""


def diagnoses_of(reports: Sequence[RankReport], across: Across | None) -> list[Diagnosis]:
    """The diagnoses of all ranks and the one across them, the costliest first.

    A diagnosis that several ranks share appears once, with the evidence of the rank that it costs
    most.
    """
    by_id: dict[str, list[tuple[RankReport, Diagnosis]]] = {}
    for report in reports:
        for diagnosis in report.diagnoses:
            if diagnosis.id == "bandwidth-bound" and _waits(report, diagnosis, across):
                continue
            by_id.setdefault(diagnosis.id, []).append((report, diagnosis))
    merged = []
    for found in by_id.values():
        worst = max((d for _, d in found), key=lambda d: d.cost_us)
        devices = sorted({r.device for r, _ in found if r.gpus > 1})
        ranks = sorted({r.rank or 0 for r, _ in found})
        merged.append(replace(worst, ranks=ranks, devices=devices))
    if across is not None and across.late_rank is not None:
        merged = _with_late(merged, _late_rank(reports, across, across.late_rank))
    ids = {d.id for d in merged}
    merged = [
        replace(d, shared_us={i: us for i, us in d.shared_us.items() if i in ids}) for d in merged
    ]
    return sorted(merged, key=lambda d: -d.cost_us)


def _with_late(merged: Sequence[Diagnosis], late: Diagnosis) -> list[Diagnosis]:
    """The diagnoses with that of a late rank: waiting for it is exposed communication too.

    Which of a collective's time is waiting is not known, so all that fits can be shared.
    """
    shared = {d.id: dict(d.shared_us) for d in [*merged, late]}
    for d in merged:
        if d.id in EXPOSED and set(d.ranks) & set(late.ranks):
            note_shared(shared, d, late, late.cost_us)
    return [replace(d, shared_us=shared[d.id]) for d in [*merged, late]]


def _waits(report: RankReport, diagnosis: Diagnosis, across: Across | None) -> bool:
    """Whether collectives of a rank take so long since they wait for other ranks."""
    found = across.waiting.get(report.rank or 0) if across is not None else None
    if found is None:
        return False
    waiting = us_of_ns(found.waiting_ns / steps_by_rank([report])[report.rank or 0])
    return waiting > MOSTLY * diagnosis.cost_us


def _late_rank(reports: Sequence[RankReport], across: Across, late: int) -> Diagnosis:
    """The other ranks wait for the rank `late`."""
    waits = {rank: w for rank, w in across.waiting.items() if rank != late}
    steps = steps_by_rank(reports)
    exposed = [us_of_ns(w.exposed_ns / steps[rank]) for rank, w in waits.items()]
    return Diagnosis(
        id="late-rank",
        rule=None,
        message=f"Other ranks wait for rank {late}: it joins collectives last, and waiting is "
        f"{across.exposed_waiting_pct:.0f} % of all exposed communication.",
        evidence={
            "late_rank": late,
            "waiting_us": {
                str(rank): us_of_ns(w.waiting_ns / steps[rank]) for rank, w in waits.items()
            },
            "last_to_join": across.waiting[late].last_to_join,
            "matched": across.waiting[late].matched,
        },
        cost_us=max(exposed, default=0.0),
        remedy="check that rank: clocks and temperature, data loading, an uneven stage or "
        "expert load; more overlap does not help",
        ranks=sorted(waits),
    )
