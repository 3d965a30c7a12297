"""For each parallel dimension: whether its communication is overlapped, by what, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron.bridge.training.decisions import RULES, Outcome
from megatron.bridge.training.rules.context import fsdp_switch
from overlapkit.config.run import Run
from overlapkit.plan.advise.draft import EP_OVERLAP
from overlapkit.plan.advise.proposal import Proposal
from overlapkit.plan.estimate.overlap import CP, DP_GRADIENTS, DP_PARAMETERS, EP, PP, TP


@dataclass(frozen=True)
class DimensionAdvice:
    """What is recommended for one dimension.

    Attributes:
        name: one of `overlapkit.plan.estimate.overlap.DIMENSIONS`.
        ranks: GPUs that communicate; 1 where nothing is exchanged.
        on: whether the recommended run overlaps its communication, as the rules grant it.
        knob: the effective setting that decides; empty where there is no switch.
        reason: why, in one sentence.
        remedy: what would turn it on, or off where it costs more than it hides; else None.
    """

    name: str
    ranks: int
    on: bool
    knob: str
    reason: str
    remedy: str | None = None


def overlapped(run: Run) -> frozenset[str]:
    """Names of the dimensions whose communication an effective run overlaps."""
    m = run.model
    on = {
        TP: m.tp_comm_overlap,
        DP_GRADIENTS: run.ddp.overlap_grad_reduce,
        DP_PARAMETERS: run.ddp.overlap_param_gather,
        PP: m.overlap_p2p_comm,
        CP: (m.context_parallel_size or 1) > 1 and _cp_kinds(m) == {"p2p"},
        EP: getattr(m, EP_OVERLAP, False),
    }
    return frozenset(name for name, value in on.items() if value)


def dimensions(p: Proposal, *, experts_not_worth: str | None = None) -> list[DimensionAdvice]:
    """Every dimension of a proposal, including those without communication.

    Args:
        p: what the rules granted.
        experts_not_worth: why the experts' overlap is not requested although it could be.
    """
    return [
        _tensor(p),
        *_data(p),
        _pipeline(p),
        _context(p),
        _experts(p, experts_not_worth),
    ]


def _tensor(p: Proposal) -> DimensionAdvice:
    knob, ranks = "model.tp_comm_overlap", p.run.model.tensor_model_parallel_size or 1
    on = bool(p.effective(knob))
    if on:
        return DimensionAdvice(TP, ranks, True, knob, p.tensor.reason)
    if not p.tensor.on:
        return DimensionAdvice(TP, ranks, False, knob, p.tensor.reason, p.tensor.remedy)
    reason, remedy = _decided(p, knob)
    return DimensionAdvice(TP, ranks, False, knob, reason, remedy)


def _decided(p: Proposal, knob: str) -> tuple[str, str | None]:
    """What the rules decided about a knob: all reasons, and the first remedy."""
    decisions = [d for d in p.report.decisions if d.knob == knob]
    reasons = "; ".join(dict.fromkeys(d.reason.rstrip(".") for d in decisions))
    remedy = next((d.remedy for d in decisions if d.remedy), None)
    return reasons, remedy


def _data(p: Proposal) -> Iterator[DimensionAdvice]:
    model = p.run.model
    cp = model.context_parallel_size or 1
    ranks = p.report.data_parallel_size * cp
    of = f"DP x CP = {p.report.data_parallel_size} x {cp}" if cp > 1 else f"DP {ranks}"
    piece = "a bucket" if fsdp_switch(p.run.ddp, p.run.dist) is None else "an FSDP unit"
    for name, knob, on_reason in (
        (
            DP_GRADIENTS,
            "ddp.overlap_grad_reduce",
            f"{of}: {piece} is reduced as soon as its last gradient is ready, while the backward "
            "of earlier layers runs",
        ),
        (
            DP_PARAMETERS,
            "ddp.overlap_param_gather",
            f"{of}: the new parameters of {piece} are gathered while the forward of earlier layers "
            "runs",
        ),
    ):
        if p.effective(knob):
            yield DimensionAdvice(name, ranks, True, knob, on_reason)
        elif ranks == 1:
            reason = "DP x CP is 1: no other GPU has the same parameters"
            yield DimensionAdvice(name, ranks, False, knob, reason)
        elif p.settings.values.get("peft") is not None:
            reason = "only the adapters' gradients are reduced, too few to be worth overlapping"
            yield DimensionAdvice(name, ranks, False, knob, reason)
        else:
            reason, remedy = _decided(p, knob)
            yield DimensionAdvice(name, ranks, False, knob, reason or "it is switched off", remedy)


def _pipeline(p: Proposal) -> DimensionAdvice:
    knob, ranks = "model.overlap_p2p_comm", p.run.model.pipeline_model_parallel_size or 1
    on = bool(p.effective(knob))
    reason, remedy = _decided(p, knob)
    if not on and ranks > 1:
        remedy = RULES["pp.not-interleaved"].remedy
    return DimensionAdvice(PP, ranks, on, knob, reason, None if on or ranks == 1 else remedy)


def _context(p: Proposal) -> DimensionAdvice:
    """Transformer Engine always overlaps its ring; no rule decides about it."""
    ranks = p.run.model.context_parallel_size or 1
    kinds = _cp_kinds(p.run.model)
    if ranks == 1:
        return DimensionAdvice(CP, 1, False, "", "CP is 1: each GPU has entire sequences")
    if kinds == {"p2p"}:
        return DimensionAdvice(
            CP,
            ranks,
            True,
            "",
            "keys and values are sent around the ring while attention computes the previous block; "
            "Transformer Engine always does this, there is no switch",
        )
    return DimensionAdvice(
        CP,
        ranks,
        False,
        "model.cp_comm_type",
        f"cp_comm_type is {', '.join(sorted(kinds))}: attention waits for the exchange",
        "set model.cp_comm_type=p2p, whose ring hides under attention",
    )


def _cp_kinds(model: Any) -> set[str]:
    """How keys and values are exchanged, over all layers; Megatron-Core's default is the ring."""
    kind = getattr(model, "cp_comm_type", None) or "p2p"
    return {str(each) for each in (kind if isinstance(kind, (list, tuple)) else [kind])}


def _experts(p: Proposal, not_worth: str | None) -> DimensionAdvice:
    knob, ranks = f"model.{EP_OVERLAP}", p.run.model.expert_model_parallel_size or 1
    if p.effective(knob):
        reason = "the experts' exchange of one microbatch runs during the compute of another"
        return DimensionAdvice(EP, ranks, True, knob, reason)
    if ranks == 1:
        experts = p.run.model.num_moe_experts
        why = "EP is 1: each GPU has every expert" if experts else "the model has no experts"
        return DimensionAdvice(EP, ranks, False, knob, why)
    refused = [d for d in p.refused if d.knob == knob]
    if refused:
        reasons = "; ".join(dict.fromkeys(d.reason.rstrip(".") for d in refused))
        remedies = "; ".join(dict.fromkeys(d.remedy for d in refused if d.remedy))
        return DimensionAdvice(EP, ranks, False, knob, reasons, remedies or None)
    if not_worth:
        return DimensionAdvice(EP, ranks, False, knob, not_worth)
    reason, remedy = _decided(p, knob)
    return DimensionAdvice(EP, ranks, False, knob, reason, remedy)


def bucket_count(p: Proposal) -> str | None:
    """How many buckets the gradients have, in a sentence of the rules; None if unknown."""
    for d in p.report.decisions:
        if d.rule == "core.bucket-count" and d.outcome is Outcome.NOTE:
            return d.reason
    return None
