"""The report as the JSON interface `overlapkit/trace/v1` (docs/json-trace.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from overlapkit.output.numbers import us_of_ns
from overlapkit.output.printable import all_printable
from overlapkit.trace.diagnose.diagnosis import Finding
from overlapkit.trace.measure.collectives import Collective, SlowedCompute
from overlapkit.trace.measure.step_times import Times
from overlapkit.trace.rank_report import RankReport, median
from overlapkit.trace.ranks import Across

SCHEMA = "overlapkit/trace/v1"
TOP = 10
"""Collectives that a report lists."""

TIME_FIELDS = (
    "step_us",
    "compute_us",
    "comm_us",
    "exposed_comm_us",
    "hidden_comm_us",
    "memory_us",
    "exposed_memory_us",
    "idle_us",
)


def trace_json(
    reports: Sequence[RankReport], across: Across | None, findings: Sequence[Finding]
) -> dict[str, Any]:
    """The whole report."""
    document = {
        "schema": SCHEMA,
        "files": list(dict.fromkeys(r.path for r in reports)),
        "gpu": next((r.gpu for r in reports if r.gpu), None),
        "world_size": next((r.world_size for r in reports if r.world_size), None),
        "warnings": merged_warnings(reports),
        "ranks": [rank_json(r) for r in reports],
        "across_ranks": None if across is None else _across_json(across, reports),
        "diagnoses": [finding_json(f) for f in findings],
    }
    result: dict[str, Any] = all_printable(document)
    return result


def times_json(times: Times, zero: int) -> dict[str, Any]:
    """One window; `zero` is the moment that its start counts from."""
    return {
        "name": times.window.name,
        "number": times.window.number,
        "start_us": us_of_ns(times.window.start - zero),
        "overlap_pct": _pct(times.overlap_pct),
        "step_us": us_of_ns(times.step),
        "compute_us": us_of_ns(times.compute),
        "comm_us": us_of_ns(times.comm),
        "exposed_comm_us": us_of_ns(times.exposed_comm),
        "hidden_comm_us": us_of_ns(times.hidden_comm),
        "memory_us": us_of_ns(times.memory),
        "exposed_memory_us": us_of_ns(times.exposed_memory),
        "idle_us": us_of_ns(times.idle),
        "by_dimension": {
            d: {
                "comm_us": us_of_ns(t.comm),
                "exposed_comm_us": us_of_ns(t.exposed),
                "hidden_comm_us": us_of_ns(t.hidden),
            }
            for d, t in times.by_dimension.items()
        },
    }


def median_json(measured: Sequence[Times]) -> dict[str, Any]:
    """The median of each figure over the steps; each by itself, so that parts need not add up."""
    rows = [times_json(t, t.window.start) for t in measured]
    overlap = [row["overlap_pct"] for row in rows if row["overlap_pct"] is not None]
    return {
        "steps": len(rows),
        "overlap_pct": round(median(overlap), 4) if overlap else None,
        **{key: round(median([row[key] for row in rows]), 4) for key in TIME_FIELDS},
        "by_dimension": {
            d: {
                key: round(median([row["by_dimension"][d][key] for row in rows]), 4)
                for key in ("comm_us", "exposed_comm_us", "hidden_comm_us")
            }
            for d in rows[0]["by_dimension"]
        },
    }


def rank_json(report: RankReport) -> dict[str, Any]:
    """One rank."""
    zero = report.whole.window.start
    return {
        "rank": report.rank,
        "device": report.device,
        "file": report.path,
        "source": report.source,
        "gpu": report.gpu,
        "device_events": report.kernels,
        "whole": times_json(report.whole, zero),
        "steps": [times_json(t, zero) for t in report.steps],
        "median": median_json(report.measured),
        "dimension_confidence": report.confidence,
        "exposed_collectives": [_collective_json(c) for c in report.collectives[:TOP]],
        "slowed_compute": _slowed_json(report.slowed),
        "warnings": report.warnings,
    }


def _pct(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _collective_json(c: Collective) -> dict[str, Any]:
    return {
        "name": c.sort.name,
        "operation": c.sort.operation,
        "dimension": c.sort.dimension,
        "confidence": c.sort.confidence,
        "group": c.sort.group,
        "count": c.count,
        "bytes": c.bytes,
        "comm_us": us_of_ns(c.busy_ns),
        "exposed_comm_us": us_of_ns(c.exposed_ns),
        "bus_gb_per_s": None if c.bus_gb_s is None else round(c.bus_gb_s, 2),
    }


def _slowed_json(slowed: SlowedCompute) -> dict[str, Any]:
    return {
        "ratio": None if slowed.ratio is None else round(slowed.ratio, 4),
        "during_us": us_of_ns(slowed.during_ns),
        "expected_us": us_of_ns(slowed.expected_ns),
        "lost_us": us_of_ns(slowed.lost_ns),
        "kernels": [
            {
                "name": k.name,
                "count": k.count,
                "median_during_us": us_of_ns(k.median_during),
                "median_alone_us": us_of_ns(k.median_alone),
                "ratio": round(k.ratio, 4),
                "lost_us": us_of_ns(k.lost_ns),
            }
            for k in slowed.kernels
        ],
    }


def _across_json(a: Across, reports: Sequence[RankReport]) -> dict[str, Any]:
    steps = {r.rank or 0: max(1, len(r.measured)) for r in reports}
    return {
        "ranks": len(a.step_ns),
        "slowest_rank": a.slowest,
        "spread_us": us_of_ns(a.spread_ns),
        "spread_pct": round(a.spread_pct, 3),
        "step_us": {str(rank): us_of_ns(ns) for rank, ns in a.step_ns.items()},
        "late_rank": a.late_rank,
        "exposed_waiting_pct": _pct(a.exposed_waiting_pct),
        "waiting": {
            str(rank): {
                "waiting_us": us_of_ns(w.waiting_ns / steps[rank]),
                "exposed_waiting_us": us_of_ns(w.exposed_ns / steps[rank]),
                "caused_us": us_of_ns(w.caused_ns / steps[rank]),
                "last_to_join": w.last_to_join,
                "matched": w.matched,
            }
            for rank, w in a.waiting.items()
        },
        "notes": a.notes,
    }


def finding_json(f: Finding) -> dict[str, Any]:
    """One diagnosis."""
    return {
        "id": f.id,
        "rule": f.rule,
        "message": f.message,
        "evidence": f.evidence,
        "cost_us": f.cost_us,
        "remedy": f.remedy,
        "confidence": f.confidence,
        "ranks": f.ranks,
    }


def merged_warnings(reports: Sequence[RankReport]) -> list[str]:
    """Each warning once, with the ranks that it concerns where there are several."""
    where: dict[str, list[int]] = {}
    for report in reports:
        for warning in report.warnings:
            where.setdefault(warning, []).append(report.rank or 0)
    if len(reports) == 1:
        return list(where)
    return [
        text if len(ranks) == len(reports) else f"rank {', '.join(map(str, ranks))}: {text}"
        for text, ranks in where.items()
    ]


def merged_findings(reports: Sequence[RankReport], across: Across | None) -> list[Finding]:
    """Diagnoses of all ranks, each once with its costliest evidence, and those across ranks."""
    by_id: dict[str, list[tuple[RankReport, Finding]]] = {}
    for report in reports:
        for finding in report.findings:
            by_id.setdefault(finding.id, []).append((report, finding))
    merged = []
    for found in by_id.values():
        worst = max((f for _, f in found), key=lambda f: f.cost_us)
        merged.append(replace(worst, ranks=sorted({r.rank or 0 for r, _ in found})))
    if across is not None and across.late_rank is not None:
        late = across.late_rank
        waits = {rank: w for rank, w in across.waiting.items() if rank != late}
        steps = {r.rank or 0: max(1, len(r.measured)) for r in reports}
        cost = max((us_of_ns(w.exposed_ns / steps[rank]) for rank, w in waits.items()), default=0.0)
        merged.append(
            Finding(
                "late-rank",
                None,
                f"Other ranks wait for rank {late}: it is the last to join, and "
                f"waiting is {across.exposed_waiting_pct:.0f} % of all exposed communication.",
                {
                    "late_rank": late,
                    "waiting_us": {
                        str(rank): us_of_ns(w.waiting_ns / steps[rank]) for rank, w in waits.items()
                    },
                    "last_to_join": across.waiting[late].last_to_join,
                    "matched": across.waiting[late].matched,
                },
                cost,
                "look at that rank: clocks and temperature, data loading, an uneven stage or "
                "expert load; more overlap does not help",
                ranks=sorted(waits),
            )
        )
    return sorted(merged, key=lambda f: -f.cost_us)


TITLES = {
    "compute": "compute",
    "exposed_comm": "exposed communication",
    "exposed_memory": "exposed memory",
    "idle": "idle",
}
