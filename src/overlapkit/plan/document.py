"""The JSON interface of `overlapkit plan`: `overlapkit/plan/v1` (docs/json-plan.md)."""

from __future__ import annotations

from typing import Any

from overlapkit.plan.advise.dimensions import buckets_told
from overlapkit.plan.advise.next_steps import next_steps
from overlapkit.plan.estimate.costs import Summary
from overlapkit.plan.figure import figure_json
from overlapkit.plan.plan import Plan
from overlapkit.plan.sweep import Ranked, Ranking
from overlapkit.plan.text import recommended_settings, title

SCHEMA = "overlapkit/plan/v1"

LISTED = 20
"""Layouts of a sweep that the document holds: the fastest."""


def plan_json(plan: Plan, *, show_work: bool = False) -> dict[str, Any]:
    """The plan as the JSON interface shows it.

    Args:
        plan: what to show.
        show_work: with the derivation of every figure, which is long.
    """
    r, p = plan.recommendation, plan.recommendation.proposal
    summaries = plan.estimates
    return {
        "schema": SCHEMA,
        "config": title(plan)[0],
        "world_size": plan.world_size,
        "gpu": plan.gpu,
        "precision": plan.precision,
        "layout": layout_json(plan),
        "estimate": _estimate(summaries) if summaries else None,
        "not_estimated": r.not_estimated,
        "memory_gb": _memory(plan),
        "dimensions": [
            {
                "dimension": d.name,
                "ranks": d.ranks,
                "on": d.on,
                "gain_ms": _ms(r.gains[d.name].seconds) if d.name in r.gains else None,
                "gain_pct": _pct(r.gains[d.name].share) if d.name in r.gains else None,
                "reason": d.reason,
                "remedy": d.remedy,
            }
            for d in r.dimensions
        ],
        "preset": None
        if p.preset is None
        else {
            "name": p.preset.name,
            "match": p.preset.match,
            "differs": list(p.preset.differs),
            "reason": p.preset.reason,
        },
        "bucket": _bucket(plan),
        "gradient_reduction": r.reduction,
        "environment": {v.name: v.value for v in p.report.launch_env},
        "environment_reasons": {v.name: v.reason for v in p.report.launch_env},
        "settings": recommended_settings(p),
        "changes": {
            knob: {"from": before, "to": after} for knob, (before, after) in r.changes.items()
        },
        "next_steps": [{"shows": s.shows, "change": s.change} for s in next_steps(p)],
        "notes": list(plan.notes),
        "sweep": None if plan.ranking is None else ranking_json(plan.ranking),
        "work": [figure_json(figure) for figure in plan.figures()] if show_work else None,
    }


def layout_json(plan: Plan) -> dict[str, Any]:
    """The layout, and why this one where it was chosen."""
    chosen = plan.layout
    return {
        "tp": chosen.tp,
        "pp": chosen.pp,
        "vp": chosen.vp,
        "cp": chosen.cp,
        "ep": chosen.ep,
        "dp": plan.data_parallel_size,
        "micro_batch": chosen.mbs,
        "global_batch": plan.recommendation.proposal.run.train.global_batch_size,
        "sequence": plan.recommendation.proposal.run.model.seq_length,
        "chosen": plan.chosen_because,
    }


def _estimate(summaries: tuple[Summary, ...]) -> dict[str, Any]:
    after, before = summaries
    return {
        "step_ms": {"without": _ms(before.step_s), "with": _ms(after.step_s)},
        "tokens_per_s_per_gpu": {
            "without": round(before.tokens_per_s_per_gpu),
            "with": round(after.tokens_per_s_per_gpu),
        },
        "parts_ms": {
            name: {"without": _ms(before.parts.get(name, 0)), "with": _ms(after.parts.get(name, 0))}
            for name in before.parts | after.parts
            if before.parts.get(name) or after.parts.get(name)
        },
    }


def _memory(plan: Plan) -> dict[str, Any] | None:
    if plan.memory is None:
        return None
    return {
        "needed": round(plan.memory.needed / 1e9, 1),
        "usable": round(plan.memory.usable / 1e9, 1),
        "capacity": round(plan.memory.capacity / 1e9, 1),
    }


def _bucket(plan: Plan) -> dict[str, Any] | None:
    p = plan.recommendation.proposal
    size = p.effective("ddp.bucket_size")
    if size is None or not p.effective("ddp.overlap_grad_reduce"):
        return None
    return {
        "parameters": size,
        "reason": p.bucket.reason if p.bucket is not None else "given on the command line",
        "count": buckets_told(p),
    }


def ranking_json(ranking: Ranking) -> dict[str, Any]:
    """The fastest layouts of a sweep, and how many there were."""
    return {
        "tried": ranking.tried,
        "fit": len(ranking.fitting),
        "layouts": [ranked_json(each) for each in ranking.fitting[:LISTED]],
    }


def ranked_json(each: Ranked) -> dict[str, Any]:
    """One layout of a sweep."""
    layout = each.layout
    return {
        "tp": layout.tp,
        "pp": layout.pp,
        "vp": layout.vp,
        "cp": layout.cp,
        "ep": layout.ep,
        "dp": each.data_parallel_size,
        "micro_batch": layout.mbs,
        "step_ms": _ms(each.summary.step_s),
        "tokens_per_s_per_gpu": round(each.summary.tokens_per_s_per_gpu),
        "memory_gb": round(each.memory.needed / 1e9, 1),
    }


def _ms(seconds: float) -> float:
    value = 1e3 * seconds
    return round(value, 1) if value >= 1000 else float(f"{value:.4g}")


def _pct(share: float) -> float:
    return round(100 * share, 1)
