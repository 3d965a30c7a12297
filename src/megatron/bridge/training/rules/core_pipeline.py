"""What Megatron-Core does with the pipeline's knobs: refusals, fallbacks and hazards.

Facts of megatron-core 0.16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.models.pipeline_layout import virtual_size_of_layout
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, either, in_words
from megatron.bridge.training.remedies import interleaved, off, overlapped_p2p
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.versions import Range

LAYOUT_SETS_VPP = rule(
    "core.layout-sets-vpp",
    Dimension.PP,
    claim="pipeline_model_parallel_layout sets the virtual pipeline size only after comm_overlap "
    "was applied, so comm_overlap chooses as if there were no interleaving.",
    remedy="set model.virtual_pipeline_model_parallel_size to the layout's chunks per stage",
)
LAYOUT_DIFFERS = rule(
    "core.layout-vpp-differs",
    Dimension.PP,
    claim="A virtual_pipeline_model_parallel_size other than the one that "
    "pipeline_model_parallel_layout has is refused.",
    remedy="set model.virtual_pipeline_model_parallel_size to the layout's chunks per stage",
    source="Megatron-LM megatron/core/transformer/transformer_config.py",
)
P2P_MODES_EXCLUDE = rule(
    "core.p2p-modes-exclude",
    Dimension.PP,
    claim="overlap_p2p_comm and batch_p2p_comm exclude each other: the interleaved schedule "
    "refuses both together.",
    remedy="set batch_p2p_comm=false",
)
P2P_OVERLAP_NEEDS_INTERLEAVING = rule(
    "core.p2p-overlap-needs-interleaving",
    Dimension.PP,
    claim="The schedule without interleaving refuses overlap_p2p_comm.",
    remedy="set overlap_p2p_comm=false; to overlap, set "
    "model.virtual_pipeline_model_parallel_size > 1 and batch_p2p_comm=false",
)
WARMUP_FLUSH = rule(
    "core.p2p-warmup-flush",
    Dimension.PP,
    claim="overlap_p2p_comm_warmup_flush needs overlap_p2p_comm without batch_p2p_comm.",
    remedy="set overlap_p2p_comm_warmup_flush=false, or with an interleaved schedule "
    "overlap_p2p_comm=true and batch_p2p_comm=false",
)
SENT_THEN_FREED = rule(
    "core.sent-then-freed",
    Dimension.PP,
    claim="With overlap_p2p_comm, deallocate_pipeline_outputs can free an activation while it is "
    "being sent, and a corrupted one arrives: observed over gloo with megatron-core 0.16.1, "
    "reported over NCCL (NaN gradient norms of Llama 3.1 405B at PP=16, VPP=8 on GB200), where it "
    "was not tried here.",
    remedy="set deallocate_pipeline_outputs=false on the model",
    versions=(Range("core", until="0.18.0"),),
    source="fixed by Megatron-LM 260cba7133 (its pull request #4047 has the report)",
    is_bug=True,
)
DEFERRED_WGRAD = rule(
    "core.defer-embedding-wgrad",
    Dimension.PP,
    claim="defer_embedding_wgrad_compute needs PP > 1, gradient_accumulation_fusion and a "
    "wgrad_deferral_limit that is not negative.",
    remedy="set what is missing (comm_overlap's default limit is -1); without pipeline stages "
    "defer_embedding_wgrad_compute=false",
)


_VPP = "model.virtual_pipeline_model_parallel_size"


def layout_sets_vpp(model: Any) -> Iterator[Decision]:
    """Set the virtual pipeline size of a layout on the model, in place, as Megatron-Core does."""
    layout = getattr(model, "pipeline_model_parallel_layout", None)
    given = getattr(model, "virtual_pipeline_model_parallel_size", None)
    size = virtual_size_of_layout(layout, model.pipeline_model_parallel_size or 1)
    if given is not None and size is not None and given != size:
        yield LAYOUT_DIFFERS.error(
            _VPP,
            given,
            f"pipeline_model_parallel_layout has {size} chunks per stage",
            edits=(Edit(_VPP, size if size > 1 else None),),
        )
    if given is None and size is not None and size > 1:
        model.virtual_pipeline_model_parallel_size = size
        yield LAYOUT_SETS_VPP.decide(
            _VPP,
            requested=None,
            effective=size,
            reason=f"pipeline_model_parallel_layout has {size} chunks per stage",
            outcome=Outcome.NOTE,
            edits=(Edit(_VPP, size),),
        )


def pipeline_consequences(c: Context) -> Iterator[Decision]:
    """What Megatron-Core does with the effective p2p and deferral knobs."""
    overlap, batch = c.of_model("overlap_p2p_comm"), c.of_model("batch_p2p_comm")
    pp, vpp = c.pipeline_size, c.virtual_pipeline_size
    if pp > 1 and vpp > 1 and overlap and batch:
        yield P2P_MODES_EXCLUDE.error(
            "model.overlap_p2p_comm",
            True,
            "batch_p2p_comm is on too, and the interleaved schedule refuses both together",
            edits=off("model.batch_p2p_comm")(c),
        )
    if pp > 1 and vpp <= 1 and overlap:
        without_overlap, more = off("model.overlap_p2p_comm")(c), interleaved(c)
        yield P2P_OVERLAP_NEEDS_INTERLEAVING.error(
            "model.overlap_p2p_comm",
            True,
            f"PP={pp} without interleaving: this schedule raises a ValueError at the first step",
            either(without_overlap, f"to overlap, {in_words(more)}" if more else ""),
            without_overlap,
        )
    if c.of_model("overlap_p2p_comm_warmup_flush") and (not overlap or batch):
        yield WARMUP_FLUSH.error(
            "model.overlap_p2p_comm_warmup_flush",
            True,
            f"overlap_p2p_comm is {overlap} and batch_p2p_comm is {batch}",
            edits=overlapped_p2p(c)
            if pp > 1 and vpp > 1
            else (Edit("model.overlap_p2p_comm_warmup_flush", False),),
        )
    sends = pp > 1 and vpp > 1 and overlap and not batch
    if sends and c.of_model("deallocate_pipeline_outputs"):
        shown = "gloo" in c.backend
        seen = (
            "trains on corrupted activations"
            if shown
            else "can corrupt activations, as one large run reported; it was not tried here"
        )
        # Megatron-LM has no flag for it.
        kept = Edit("model.deallocate_pipeline_outputs", False)
        edits = (kept,) if c.of_megatron_bridge else ()
        yield SENT_THEN_FREED.decide(
            "model.deallocate_pipeline_outputs",
            requested=None,
            effective=True,
            reason=f"PP={pp} with VPP={vpp} and overlap_p2p_comm: an activation is freed before "
            f"its send has completed; over {c.backend} that {seen}",
            outcome=Outcome.WRONG_NUMBERS if shown else Outcome.NOTE,
            remedy=in_words(edits) or SENT_THEN_FREED.remedy,
            edits=edits,
        )
    if c.of_model("defer_embedding_wgrad_compute"):
        yield from _deferred_wgrad(c)


def _deferred_wgrad(c: Context) -> Iterator[Decision]:
    limit = c.of_model("wgrad_deferral_limit", 0)
    needs = {
        "pipeline_model_parallel_size is 1": (c.pipeline_size > 1, ()),
        "gradient_accumulation_fusion is off": (
            c.of_model("gradient_accumulation_fusion"),
            (Edit("model.gradient_accumulation_fusion", True),),
        ),
        f"wgrad_deferral_limit is {limit}": (
            limit >= 0,
            (Edit(c.key("model.wgrad_deferral_limit"), 0),),
        ),
    }
    broken = {found: edits for found, (is_met, edits) in needs.items() if not is_met}
    if broken:
        # Without pipeline stages there is nothing to defer to.
        edits = tuple(edit for each in broken.values() for edit in each)
        edits = edits if c.pipeline_size > 1 else off("model.defer_embedding_wgrad_compute")(c)
        yield DEFERRED_WGRAD.decide(
            "model.defer_embedding_wgrad_compute",
            requested=True,
            effective=True,
            reason=", ".join(broken) + ": Megatron-Core raises a ValueError",
            outcome=Outcome.ERROR,
            edits=edits,
        )
