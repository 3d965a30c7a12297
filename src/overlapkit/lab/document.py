"""What a run of the lab found, as one JSON document: `overlapkit/lab/v1`."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overlapkit.lab.measurements import Measured, Seen, SeenBlock
from overlapkit.lab.protocol import Block, DecisionRecord
from overlapkit.lab.scenario import NOT_CONFIRMED, Scenario, Verdict

SCHEMA = "overlapkit/lab/v1"


@dataclass(frozen=True)
class Told:
    """A scenario with what was seen and judged of it."""

    scenario: Scenario
    blocks: tuple[Block, ...]
    seen: Seen
    verdicts: list[Verdict]


def lab_json(
    told: Sequence[Told], link: dict[str, Any], device: str, seconds: float
) -> dict[str, Any]:
    """The document.

    Args:
        told: the scenarios, in the order of their running.
        link: how the link between ranks was made slow, or why it was not.
        device: "cpu" or "cuda".
        seconds: the whole run took.
    """
    versions = next((b.versions for t in told for b in t.seen.blocks.values()), {})
    name = next((b.device_name for t in told for b in t.seen.blocks.values()), "cpu")
    return {
        "schema": SCHEMA,
        "machine": {
            "device": device,
            "device_name": name,
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "versions": versions,
        },
        "link": link,
        "seconds": round(seconds, 1),
        "scenarios": [_scenario(one) for one in told],
        "confirmed": not any(v.outcome == NOT_CONFIRMED for t in told for v in t.verdicts),
    }


def _scenario(told: Told) -> dict[str, Any]:
    return {
        "name": told.scenario.name,
        "title": told.scenario.title,
        "claims": [
            {"claim": v.claim, "outcome": v.outcome, "evidence": v.evidence} for v in told.verdicts
        ],
        "blocks": [_block(block, told.seen.blocks[block.name]) for block in told.blocks],
    }


def _block(block: Block, seen: SeenBlock) -> dict[str, Any]:
    variants = list(seen.variants.values())
    first = variants[0]
    return {
        "name": block.name,
        "ranks": block.ranks,
        "link_mbit": None if seen.rate_mbit is None else round(seen.rate_mbit, 1),
        "timed": block.rounds > 0,
        "counted_steps": block.rounds * block.steps,
        "profiled_steps": block.profiled if block.rounds else 0,
        "ideal_ms": _ms(ideal(first)),
        "variants": [_variant(variant, first) for variant in variants],
    }


def ideal(off: Measured) -> float | None:
    """Shortest step that overlap could make of a variant that hides nothing, in seconds.

    The longer of its compute alone and its communication alone: its step without the exposed
    communication, and its communication. None without a profile, and where the profiled
    communication takes longer than the timed step: then the profile does not tell of those steps,
    as happens where ranks share cores.
    """
    if off.profile is None or math.isnan(off.step) or off.profile.comm > off.step:
        return None
    return max(off.step - off.profile.exposed, off.profile.comm)


def _variant(variant: Measured, first: Measured) -> dict[str, Any]:
    if variant.error is not None:
        return {"name": variant.name, "error": variant.error}
    rank = variant.ranks[0]
    best = ideal(first)
    result: dict[str, Any] = {
        "name": variant.name,
        "layout": rank.layout,
        "effective": variant.effective,
        "refused": [_refused(d) for d in variant.decisions if d.outcome == "refused"],
        "buckets": [len(chunk) for chunk in rank.buckets],
        "parameters": rank.parameters,
        "peak_mb": round(variant.peak_bytes / 1e6, 1),
        "wire_mb": None if variant.wire_bytes is None else round(variant.wire_bytes / 1e6, 2),
        "losses": next(iter(variant.losses.values()), []),
        "weights": variant.digests,
    }
    if rank.turns:
        result |= {
            "step_ms": _ms(variant.step),
            "spread_ms": _ms(variant.spread),
            "ratio": None if math.isnan(first.step) else round(variant.step / first.step, 3),
            "of_ideal": None if best is None else round(variant.step / best, 3),
            "steps_ms": [_ms(step) for step in variant.steps],
        }
    if variant.profile is not None:
        profile = variant.profile
        result["profile"] = {
            "step_ms": _ms(profile.step),
            "step_spread_ms": _ms(profile.step_spread),
            "compute_ms": _ms(profile.compute),
            "comm_ms": _ms(profile.comm),
            "exposed_ms": _ms(profile.exposed),
            "hidden_ms": _ms(profile.hidden),
            "other_ms": _ms(profile.other),
            "overlap_pct": None if profile.overlap is None else round(100 * profile.overlap, 1),
            "by_dimension": {
                name: {"comm_ms": _ms(comm), "exposed_ms": _ms(exposed)}
                for name, (comm, exposed) in profile.by_dimension.items()
            },
            "traces": [rank.trace for rank in variant.ranks],
        }
    return result


def _refused(decision: DecisionRecord) -> dict[str, Any]:
    return {
        "rule": decision.rule,
        "knob": decision.knob,
        "requested": decision.requested,
        "effective": decision.effective,
        "reason": decision.reason,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or math.isnan(seconds) else round(seconds * 1e3, 2)
