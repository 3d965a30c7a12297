"""Pipeline-parallel overlap: which point-to-point mode a schedule gets, and its hazard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.models.pipeline_layout import virtual_size_of_layout
from megatron.bridge.training.decisions import (
    Decision,
    Dimension,
    Outcome,
    Rule,
    rule,
)
from megatron.bridge.training.rules.context import Context, choose

PP_NONE = rule(
    "pp.none",
    Dimension.PP,
    claim="Without pipeline parallelism both overlap_p2p_comm and batch_p2p_comm are off.",
)

PP_INTERLEAVED = rule(
    "pp.interleaved",
    Dimension.PP,
    claim="With PP > 1 and VPP > 1, overlap_p2p_comm is on and batch_p2p_comm is off.",
)

PP_NOT_INTERLEAVED = rule(
    "pp.not-interleaved",
    Dimension.PP,
    claim="With PP > 1 and no interleaving (VPP unset or 1), batch_p2p_comm is on and "
    "overlap_p2p_comm is off.",
    remedy="set model.virtual_pipeline_model_parallel_size > 1 to overlap p2p communication",
)

PP_WGRAD_DEFERRAL = rule(
    "pp.wgrad-deferral",
    Dimension.PP,
    claim="defer_embedding_wgrad_compute is off and wgrad_deferral_limit is -1 unless asked for.",
    opt_in=True,
)

PP_SAME_PEER_HAZARD = rule(
    "pp.same-peer-hazard",
    Dimension.PP,
    claim="PP = 2 with VPP > 1 and batched p2p trains on silently wrong gradients once there are "
    "more microbatches than stages; our setup() refuses it, NVIDIA's Megatron-Bridge does not.",
    remedy="set comm_overlap.overlap_p2p_comm=true and comm_overlap.batch_p2p_comm=false, or VPP "
    "1, or PP > 2",
)


def select_p2p(pp: int, vpp: int) -> tuple[Rule, bool, bool]:
    """How pipeline stages send to each other: the rule, overlap_p2p_comm, batch_p2p_comm."""
    if pp <= 1:
        return PP_NONE, False, False
    if vpp > 1:
        return PP_INTERLEAVED, True, False
    return PP_NOT_INTERLEAVED, False, True


def decide_pp(c: Context) -> Iterator[Decision]:
    pp, vpp = c.pipeline_size, c.virtual_pipeline_size
    chosen_by, overlap, batch = select_p2p(pp, vpp)
    reason = {
        PP_NONE: "pipeline_model_parallel_size is 1: nothing is sent between stages",
        PP_INTERLEAVED: f"PP={pp} with VPP={vpp}: a tensor travels while another chunk computes",
        PP_NOT_INTERLEAVED: f"PP={pp} without interleaving: a stage waits for its peer",
    }[chosen_by]
    ask = c.request
    yield choose(chosen_by, "model.overlap_p2p_comm", overlap, ask.overlap_p2p_comm, reason)
    yield choose(chosen_by, "model.batch_p2p_comm", batch, ask.batch_p2p_comm, reason)

    reason = "deferring the embedding's weight gradient into the pipeline's tail is opt-in"
    for knob, default in (("defer_embedding_wgrad_compute", False), ("wgrad_deferral_limit", -1)):
        yield choose(PP_WGRAD_DEFERRAL, f"model.{knob}", default, getattr(ask, knob), reason)


def pp_hazard(
    model: Any, *, overlap_p2p_comm: bool, batch_p2p_comm: bool, section: str
) -> Iterator[Decision]:
    """The silent corruption of two interleaved stages, if these settings would meet it.

    Previous and next stage are then the same peer. Each rank posts its gradient send before its
    activation send, while the peer expects them the other way round; point-to-point messages match
    in the order of posting and have equal shapes, so activation and gradient change places and
    nothing fails. Seen with megatron-core 0.16.1 over gloo, where overlapped p2p was bit-identical
    to the unpartitioned model and batched p2p differed in every gradient.
    """
    pp = model.pipeline_model_parallel_size
    vpp = getattr(model, "virtual_pipeline_model_parallel_size", None)
    if vpp is None:
        # Megatron-Core takes it from the layout, but only after comm_overlap has looked.
        vpp = virtual_size_of_layout(
            getattr(model, "pipeline_model_parallel_layout", None), pp or 1
        )
    vpp = vpp or 1
    if pp == 2 and vpp > 1 and batch_p2p_comm and not overlap_p2p_comm:
        remedy = (
            f"set {section}.overlap_p2p_comm=true and {section}.batch_p2p_comm=false, or "
            "model.virtual_pipeline_model_parallel_size=null, or more than 2 pipeline stages"
        )
        yield PP_SAME_PEER_HAZARD.decide(
            "model.batch_p2p_comm",
            requested=True,
            effective=True,
            reason=f"PP=2 with VPP={vpp} and batched p2p: previous and next stage are one peer, so "
            "activations and gradients of equal shape swap places and training goes on with "
            "silently wrong gradients once there are more than 2 microbatches",
            outcome=Outcome.ERROR,
            remedy=remedy,
        )
