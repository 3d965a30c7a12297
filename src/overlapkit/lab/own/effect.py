"""Whether the overlap that the user's run asks for is in effect, there and on the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.bridge.training.decisions import FINDINGS
from overlapkit.lab.measurements import MeasuredVariant
from overlapkit.lab.own.own_run import OwnRun
from overlapkit.lab.scenario import CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE, Verdict

OVERLAPS = (
    "model.tp_comm_overlap",
    "model.overlap_p2p_comm",
    "model.overlap_p2p_comm_warmup_flush",
    "model.defer_embedding_wgrad_compute",
    "model.overlap_moe_expert_parallel_comm",
    "model.moe_shared_expert_overlap",
    "model.delay_wgrad_compute",
    "ddp.overlap_grad_reduce",
    "ddp.overlap_param_gather",
    "optimizer.overlap_param_gather_with_optimizer_step",
)
"""Switches that overlap communication with compute."""


def overlaps(effective: Mapping[str, Any]) -> list[str]:
    """The overlap that is in effect, by the switches' dotted names."""
    return [knob for knob in OVERLAPS if effective.get(knob)]


def in_effect(own: OwnRun, on: MeasuredVariant, claim: str) -> Verdict:
    """The verdict: what the rules refuse in the user's run is named, with reason and remedy.

    What differs only on the ranks is named too, and is no finding.
    """
    active = overlaps(own.effective)
    here = [] if on.error else overlaps(on.effective)
    missing = [knob for knob in active if knob not in here]
    parts = [finding.sentence for finding in own.refused]
    if active:
        parts.append(f"in effect: {', '.join(active)}")
    else:
        parts.append("no overlap is in effect")
    if missing and not on.error:
        parts.append(f"not on these ranks: {', '.join(_why_not(on, knob) for knob in missing)}")
    if on.error and not own.refused:
        return Verdict(claim, NOT_TESTABLE, f"by the rules {parts[-1]}; its ranks failed")
    if own.not_known:
        parts.append(own.not_known)
    granted = NOT_TESTABLE if own.not_known else CONFIRMED
    return Verdict(claim, NOT_CONFIRMED if own.refused else granted, "; ".join(parts))


def _why_not(on: MeasuredVariant, knob: str) -> str:
    """A switch that is off on the ranks, and the reason where a rule gave one."""
    decision = next((d for d in on.decisions if d.knob == knob and d.outcome in _REFUSALS), None)
    return knob if decision is None else f"{knob} ({decision.reason.rstrip('.')})"


_REFUSALS = frozenset(outcome.value for outcome in FINDINGS)
