"""Pipeline-parallel overlap: the point-to-point mode that a schedule gets, and its hazard."""

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
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.rules.context import Context, choose

PP_NONE = rule(
    "pp.none",
    Dimension.PP,
    claim="Without pipeline parallelism, overlap_p2p_comm and batch_p2p_comm are both off.",
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
    claim="defer_embedding_wgrad_compute is off and wgrad_deferral_limit is -1 unless requested.",
    opt_in=True,
)

PP_SAME_PEER_HAZARD = rule(
    "pp.same-peer-hazard",
    Dimension.PP,
    claim="PP = 2 with VPP > 1 and batched p2p trains on silently wrong gradients when there are "
    "more microbatches than stages. setup() refuses it here; NVIDIA's Megatron-Bridge does not.",
    remedy="set comm_overlap.overlap_p2p_comm=true and comm_overlap.batch_p2p_comm=false, or use "
    "VPP 1, or PP > 2",
)


def select_p2p(pp: int, vpp: int) -> tuple[Rule, bool, bool]:
    """How pipeline stages send to each other: the rule, overlap_p2p_comm, batch_p2p_comm."""
    if pp <= 1:
        return PP_NONE, False, False
    if vpp > 1:
        return PP_INTERLEAVED, True, False
    return PP_NOT_INTERLEAVED, False, True


def decide_pp(c: Context) -> Iterator[Decision]:
    """Every pipeline-parallel knob of comm_overlap: as requested, else the default of its rule."""
    pp, vpp = c.pipeline_size, c.virtual_pipeline_size
    chosen_by, overlap, batch = select_p2p(pp, vpp)
    reason = {
        PP_NONE: "pipeline_model_parallel_size is 1, so there are no stages to send between",
        PP_INTERLEAVED: f"PP={pp} with VPP={vpp}: a tensor is sent while another chunk computes",
        PP_NOT_INTERLEAVED: f"PP={pp} without interleaving: a stage waits for its peer",
    }[chosen_by]
    request = c.request
    yield choose(chosen_by, "model.overlap_p2p_comm", overlap, request.overlap_p2p_comm, reason)
    yield choose(chosen_by, "model.batch_p2p_comm", batch, request.batch_p2p_comm, reason)

    reason = "deferring the embedding's weight gradient to the end of the pipeline is opt-in"
    for knob, default in (("defer_embedding_wgrad_compute", False), ("wgrad_deferral_limit", -1)):
        yield choose(PP_WGRAD_DEFERRAL, f"model.{knob}", default, getattr(request, knob), reason)


def pp_hazard(
    model: Any, *, overlap_p2p_comm: bool, batch_p2p_comm: bool, section: str
) -> Iterator[Decision]:
    """Wrong numbers where two interleaved stages would silently corrupt their gradients.

    The previous and the next stage are then the same peer. Each rank posts its gradient send before
    its activation send, and the peer expects them in the opposite order. Point-to-point messages
    are matched in the order of posting and have equal shapes, so activation and gradient are
    swapped and nothing fails. Observed with megatron-core 0.16.1 over gloo: overlapped p2p was
    bit-identical to the unpartitioned model, and batched p2p differed in every gradient.

    Args:
        model: the model's configuration.
        overlap_p2p_comm, batch_p2p_comm: the effective knobs.
        section: the section of the configuration that sets them, for the remedy.
    """
    pp = model.pipeline_model_parallel_size
    vpp = getattr(model, "virtual_pipeline_model_parallel_size", None)
    if vpp is None:
        # Megatron-Core takes it from the layout, but only after comm_overlap was applied.
        vpp = virtual_size_of_layout(
            getattr(model, "pipeline_model_parallel_layout", None), pp or 1
        )
    vpp = vpp or 1
    if pp == 2 and vpp > 1 and batch_p2p_comm and not overlap_p2p_comm:
        edits = (
            Edit(f"{section}.overlap_p2p_comm", True),
            Edit(f"{section}.batch_p2p_comm", False),
        )
        otherwise = (
            "model.virtual_pipeline_model_parallel_size=null, or use more than 2 pipeline stages"
        )
        yield PP_SAME_PEER_HAZARD.decide(
            "model.batch_p2p_comm",
            requested=True,
            effective=True,
            reason=f"PP=2 with VPP={vpp} and batched p2p: the previous and the next stage are the "
            "same peer, so activations and gradients of equal shape are swapped, and with more "
            "than 2 microbatches training continues with silently wrong gradients",
            outcome=Outcome.WRONG_NUMBERS,
            remedy=either(edits, otherwise),
            edits=edits,
        )
