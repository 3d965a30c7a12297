"""The layouts of a plan's JSON document: the one that is planned, and those that were compared."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.output.numbers import rounded_gb, rounded_ms
from overlapkit.plan.plan import Plan
from overlapkit.plan.search.ranking import Ranked, Ranking

LISTED = 20
"""Layouts of a sweep that the document contains: the fastest."""

TP = Annotated[int, Meta(description="tensor-parallel ranks")]
PP = Annotated[int, Meta(description="pipeline-parallel ranks")]
VP = Annotated[int, Meta(description="virtual stages on each pipeline rank; 1 if not interleaved")]
CP = Annotated[int, Meta(description="context-parallel ranks")]
EP = Annotated[int, Meta(description="expert-parallel ranks")]
DP = Annotated[int, Meta(description="data-parallel ranks: `world_size` / (TP x PP x CP)")]
Recompute = Annotated[
    str,
    Meta(description="what the backward computes again: `none`, `full`, or modules with commas"),
]
CpComm = Annotated[str, Meta(description="how CP ranks exchange keys and values")]
Saving = Annotated[
    list[str],
    Meta(
        description="what is turned on to save memory, where no layout fits without or, in "
        "`offered`, it is faster: FSDP, offloading to the host, or a recipe of mixed_precision"
    ),
]
MicroBatch = Annotated[int, Meta(description="sequences of a microbatch")]


class PlanLayout(Struct, frozen=True, kw_only=True):
    """How the model and the batch are divided over the GPUs. Ranks are 1 where not divided."""

    tp: TP
    pp: PP
    vp: VP
    cp: CP
    ep: EP
    dp: DP
    micro_batch: MicroBatch
    global_batch: Annotated[int, Meta(description="sequences of a step, over all ranks")]
    sequence: Annotated[int | None, Meta(description="tokens of a sequence")]
    chosen: Annotated[
        str | None, Meta(description="how the layout was chosen; `null` where it was given")
    ]
    recompute: Recompute = "none"
    cp_comm_type: CpComm = "p2p"
    saving: Saving = []
    microbatches: Annotated[
        int | None, Meta(description="of a step on each pipeline; `null` where not known")
    ] = None
    bubble_share: Annotated[
        float | None,
        Meta(
            description="time in which a GPU waits while others fill and drain, over that in which "
            "it computes: (`pp` - 1) / (`vp` x `microbatches`), with equally long stages; "
            "`null` without a pipeline"
        ),
    ] = None


class PlanSweptLayout(Struct, frozen=True, kw_only=True):
    """One layout of a sweep, with its estimate."""

    tp: TP
    pp: PP
    vp: VP
    cp: CP
    ep: EP
    dp: DP
    micro_batch: MicroBatch
    step_ms: Annotated[float, Meta(description="ms of a step with the overlap that rules grant")]
    tokens_per_s_per_gpu: Annotated[int, Meta(description="tokens trained per second by each GPU")]
    memory_gb: Annotated[float, Meta(description="GB needed on the fullest GPU")]
    recompute: Recompute = "none"
    cp_comm_type: CpComm = "p2p"
    saving: Saving = []
    told_from_fastest: Annotated[
        bool,
        Meta(
            description="`false` where it counts as equally fast: published pairs of layouts are "
            "misjudged by as much"
        ),
    ] = True


class PlanSweep(Struct, frozen=True, kw_only=True):
    """The layouts that were compared."""

    tried: Annotated[int, Meta(description="how many layouts divide the model and the GPUs")]
    fit: Annotated[int, Meta(description="how many of them were estimated and fit into memory")]
    layouts: Annotated[
        list[PlanSweptLayout],
        Meta(description=f"the fastest that fit, by estimate, at most {LISTED}"),
    ]
    slower: Annotated[
        int,
        Meta(
            description="how many were not estimated: a bound shows that they cannot be among the "
            "fastest"
        ),
    ] = 0
    offered: Annotated[
        PlanSweptLayout | None,
        Meta(
            description="the fastest layout with a `saving` that memory does not need, where the "
            "estimate can tell that it is faster than `layouts`"
        ),
    ] = None


def layout_document(plan: Plan) -> PlanLayout:
    """The layout that is planned."""
    report = plan.recommendation.proposal.report
    layout, run = plan.layout, plan.recommendation.proposal.run
    return PlanLayout(
        tp=layout.tp,
        pp=layout.pp,
        vp=layout.vp,
        cp=layout.cp,
        ep=layout.ep,
        dp=plan.data_parallel_size,
        micro_batch=layout.mbs,
        global_batch=run.train.global_batch_size,
        sequence=run.model.seq_length,
        chosen=plan.chosen_because,
        recompute=layout.recompute,
        cp_comm_type=layout.cp_comm,
        saving=list(layout.saving),
        microbatches=report.microbatches,
        bubble_share=None if report.pipeline is None else report.pipeline.bubble,
    )


def sweep_document(ranking: Ranking) -> PlanSweep:
    """The layouts that were compared."""
    best, offered = ranking.best, ranking.offered
    return PlanSweep(
        tried=ranking.tried,
        fit=len(ranking.fitting),
        layouts=[_swept(each, best) for each in ranking.fastest[:LISTED]],
        slower=ranking.slower,
        offered=None if offered is None else _swept(offered, best),
    )


def _swept(each: Ranked, best: Ranked) -> PlanSweptLayout:
    layout = each.layout
    return PlanSweptLayout(
        tp=layout.tp,
        pp=layout.pp,
        vp=layout.vp,
        cp=layout.cp,
        ep=layout.ep,
        dp=each.data_parallel_size,
        micro_batch=layout.mbs,
        step_ms=rounded_ms(each.summary.step_s),
        tokens_per_s_per_gpu=round(each.summary.tokens_per_s_per_gpu),
        memory_gb=rounded_gb(each.memory.needed),
        recompute=layout.recompute,
        cp_comm_type=layout.cp_comm,
        saving=list(layout.saving),
        told_from_fastest=each.summary.told_from(best.summary),
    )
