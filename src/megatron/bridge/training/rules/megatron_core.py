"""What Megatron-Core itself does with the effective knobs: refusals, silent fallbacks, defaults.

`comm_overlap` sets knobs. These rules say what happens to them when
the model is built and trained, and to knobs that are set on model and ddp without comm_overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule, unmet
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.remedies import (
    DISTRIBUTED,
    EP_OVERLAP,
    WITH_STEP,
    Edits,
    distributed_optimizer,
    ep_overlap_off,
    in_effect,
    off,
    overlapped_reduction,
    parameters_not_in,
    reused_buffer,
)
from megatron.bridge.training.rules.buckets import bucket_consequences
from megatron.bridge.training.rules.context import Context, _CommOverlapConfig
from megatron.bridge.training.rules.context_parallel import context_consequences
from megatron.bridge.training.rules.core_pipeline import pipeline_consequences
from megatron.bridge.training.rules.core_refusals import EXPERT_REFUSALS
from megatron.bridge.training.rules.data_parallel_refusals import DATA_PARALLEL_REFUSALS
from megatron.bridge.training.rules.dispatchers import DISPATCHER_REFUSALS
from megatron.bridge.training.rules.environment import environment_consequences
from megatron.bridge.training.rules.expert import DELAY_WGRAD_GATE, EP_GATE
from megatron.bridge.training.rules.graphs import GRAPH_REFUSALS
from megatron.bridge.training.rules.layers.experts import LAYER_EXPERT_REFUSALS
from megatron.bridge.training.rules.layers.recompute import RECOMPUTE_REFUSALS
from megatron.bridge.training.rules.machine import machine_consequences
from megatron.bridge.training.rules.pipeline import pp_hazard
from megatron.bridge.training.rules.refusal import refused
from megatron.bridge.training.rules.sizes.batches import batch_checks
from megatron.bridge.training.rules.sizes.layers import layer_checks
from megatron.bridge.training.rules.sizes.sequences import sequence_checks
from megatron.bridge.training.rules.sizes.shards import shard_checks
from megatron.bridge.training.rules.sizes.splits import split_checks
from megatron.bridge.training.rules.tensor import decide_tp_overlap
from megatron.bridge.training.rules.wrong_numbers import wrong_numbers
from megatron.bridge.training.versions import Range

SEQUENCE_PARALLEL_NEEDS_TP = rule(
    "core.sequence-parallel",
    Dimension.TP,
    claim="Megatron-Core refuses sequence_parallel with tensor_model_parallel_size 1.",
    remedy="set model.sequence_parallel=false, or model.tensor_model_parallel_size > 1",
    edits=(Edit("model.sequence_parallel", False),),
)
PARAM_GATHER_NEEDS = rule(
    "core.param-gather-needs",
    Dimension.DP,
    claim="overlap_param_gather hides nothing without overlap_grad_reduce: there are no separate "
    "buckets, and the first layer waits for the single gather (Megatron-LM refuses this).",
    remedy="set overlap_grad_reduce=true",
)
PARAM_GATHER_NEEDS_OPTIMIZER = rule(
    "core.param-gather-needs-optimizer",
    Dimension.DP,
    claim="overlap_param_gather is ignored without the distributed optimizer.",
    remedy="set ddp.use_distributed_optimizer=true",
    edits=(Edit(DISTRIBUTED, True),),
    versions=(Range("core", until="0.17.1"),),
    source="Megatron-LM a2381d8007",
)
PARAM_GATHER_LAYER_WISE = rule(
    "core.param-gather-layer-wise",
    Dimension.DP,
    claim="overlap_param_gather takes effect without the distributed optimizer too, for the "
    "layer-wise optimizer. What it does beside another one is not known here.",
    remedy="set ddp.use_distributed_optimizer=true",
    edits=(Edit(DISTRIBUTED, True),),
    versions=(Range("core", since="0.17.1"),),
    source="Megatron-LM a2381d8007",
)
OPTIMIZER_STEP_NEEDS = rule(
    "core.param-gather-with-optimizer-step-needs",
    Dimension.DP,
    claim="overlap_param_gather_with_optimizer_step is ignored without overlap_param_gather. "
    "Without the distributed optimizer or an interleaved pipeline Megatron-Core fails.",
    remedy="set overlap_param_gather_with_optimizer_step=false, or set what is missing",
)
DP_ALONE = rule(
    "core.no-replica",
    Dimension.DP,
    claim="Data-parallel overlap has nothing to hide where no other rank has the same "
    "parameters (data-parallel size x CP = 1).",
)
AS_WRITTEN = rule(
    "any.no-comm-overlap",
    Dimension.ANY,
    claim="Without a comm_overlap section nothing is chosen: the knobs on model and ddp keep their "
    "values, including Megatron-Core's defaults (all overlap off, batch_p2p_comm on).",
    remedy="add a comm_overlap section",
)
REUSE_NEEDS_GATHER = rule(
    "core.reuse-grad-buf-needs",
    Dimension.PRECISION,
    claim="Megatron-Core refuses reuse_grad_buf_for_mxfp8_param_ag without fp8_param_gather.",
    remedy="set mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=false, or fp8_param_gather=true",
)
FP8_PARAM_NEEDS_FP8 = rule(
    "core.fp8-param-needs",
    Dimension.PRECISION,
    claim="Megatron-Core refuses fp8_param (and so fp8_param_gather) without fp8.",
    remedy="set mixed_precision.fp8_param_gather=false, or an fp8 recipe",
)
FP4_PARAM_NEEDS_FP4 = rule(
    "core.fp4-param-needs",
    Dimension.PRECISION,
    claim="Megatron-Core refuses fp4_param (and so fp4_param_gather) without fp4.",
    remedy="set mixed_precision.fp4_param_gather=false, or an fp4 recipe",
)
FSDP = rule(
    "core.fsdp",
    Dimension.DP,
    claim="FSDP is another data-parallel path: the rules of Megatron DDP do not describe it, "
    "and it needs CUDA_DEVICE_MAX_CONNECTIONS other than 1.",
)
EXPERTS_NEEDED = rule(
    "core.expert-parallel-needs-experts",
    Dimension.EP,
    claim="Megatron-Core refuses expert_model_parallel_size > 1 without experts, and a size that "
    "does not divide the ranks.",
    remedy="set model.expert_model_parallel_size to 1, or with experts to a size that divides "
    "the ranks",
)
SHARED_EXPERT_NEEDS = rule(
    "core.shared-expert-overlap-needs",
    Dimension.EP,
    claim="moe_shared_expert_overlap works only with the alltoall token dispatcher.",
    remedy="set model.moe_token_dispatcher_type=alltoall, or with flex "
    "moe_shared_expert_overlap=false",
)


def core_consequences(c: Context, optimizer: Any) -> Iterator[Decision]:
    """What Megatron-Core does with the effective knobs: errors, fallbacks and notes.

    Args:
        c: the configurations after mixed precision and comm_overlap were applied.
        optimizer: the optimizer's configuration.
    """
    yield from wrong_numbers(replace(c, optimizer=optimizer))
    yield from machine_consequences(c)
    yield from _precision(c)
    yield from _tensor_parallel(c)
    yield from layer_checks(c)
    yield from batch_checks(c)
    yield from sequence_checks(c)
    yield from split_checks(c)
    yield from pipeline_consequences(c)
    yield from context_consequences(c)
    yield from _expert_parallel(c)
    yield from refused(replace(c, optimizer=optimizer), REFUSALS)
    yield from _data_parallel(c, optimizer)
    yield from bucket_consequences(c, optimizer)
    yield from shard_checks(replace(c, optimizer=optimizer))
    yield from environment_consequences(c)


REFUSALS = (
    *EXPERT_REFUSALS,
    *DISPATCHER_REFUSALS,
    *LAYER_EXPERT_REFUSALS,
    *RECOMPUTE_REFUSALS,
    *GRAPH_REFUSALS,
    *DATA_PARALLEL_REFUSALS,
)
"""Every combination that stops a job, in the order in which it is reported."""

_EP = "model.expert_model_parallel_size"
_NOT_SHARED = (Edit("model.moe_shared_expert_overlap", False),)

_GATES = (
    ("overlap_moe_expert_parallel_comm", EP_GATE),
    ("delay_wgrad_compute", DELAY_WGRAD_GATE),
)

# Knobs that no rule decides about without comm_overlap, and the dimension that each belongs to.
_AS_WRITTEN = {
    "model.tp_comm_overlap": Dimension.TP,
    "ddp.overlap_grad_reduce": Dimension.DP,
    "ddp.overlap_param_gather": Dimension.DP,
    "ddp.bucket_size": Dimension.DP,
    "ddp.align_param_gather": Dimension.DP,
    "model.overlap_p2p_comm": Dimension.PP,
    "model.batch_p2p_comm": Dimension.PP,
    "model.overlap_moe_expert_parallel_comm": Dimension.EP,
    "model.delay_wgrad_compute": Dimension.EP,
}


def without_comm_overlap(c: Context) -> Iterator[Decision]:
    """What holds without comm_overlap: every knob as written, checked by the same gates.

    Transformer Engine ignores a TP overlap with unmet needs, and Megatron-Core asserts the
    expert-parallel needs. Nothing checks for the pipeline hazard.
    """
    if c.of_model("tp_comm_overlap"):
        yield decide_tp_overlap(replace(c, request=_CommOverlapConfig(tp_comm_overlap=True)))
    yield from as_written(
        c, AS_WRITTEN, "there is no comm_overlap section, so each knob keeps its own value"
    )
    yield from pp_hazard(
        c.model,
        overlap_p2p_comm=bool(c.of_model("overlap_p2p_comm")),
        batch_p2p_comm=bool(c.of_model("batch_p2p_comm")),
        section="model",
    )


def as_written(c: Context, decided_by: Rule, reason: str) -> Iterator[Decision]:
    """Every knob that no rule decides about, as written; an unmet need of its gate is an error.

    Args:
        c: the configurations.
        decided_by: the rule that leaves the knobs as they are.
        reason: why; the same for all of them.
    """
    broken = {knob: list(unmet(gate, c)) for knob, gate in _GATES if c.of_model(knob)}
    for dotted, dimension in _AS_WRITTEN.items():
        section, _, knob = dotted.partition(".")
        value = getattr(c.model if section == "model" else c.ddp, knob, None)
        for each in broken.get(knob, ()):
            yield each.decide(dotted, requested=True, effective=True, outcome=Outcome.ERROR)
        if not broken.get(knob) and not (knob == "tp_comm_overlap" and value):
            yield decided_by.decide(
                dotted,
                requested=None,
                effective=value,
                reason=reason,
                outcome=Outcome.DEFAULT,
                dimension=dimension,
            )


def _precision(c: Context) -> Iterator[Decision]:
    gather = getattr(c.ddp, "fp8_param_gather", False)
    if getattr(c.ddp, "reuse_grad_buf_for_mxfp8_param_ag", False) and not gather:
        yield REUSE_NEEDS_GATHER.error(
            "ddp.reuse_grad_buf_for_mxfp8_param_ag",
            True,
            "ddp.fp8_param_gather is off: Megatron-Core raises an AssertionError",
            edits=reused_buffer(c, on=False),
        )
    if c.of_model("fp8_param") and not c.of_model("fp8"):
        yield FP8_PARAM_NEEDS_FP8.error(
            "model.fp8_param",
            True,
            "model.fp8 is off: Megatron-Core raises a ValueError when the model is built",
            either(parameters_not_in(c, "fp8"), "choose an FP8 recipe"),
            parameters_not_in(c, "fp8"),
        )
    if c.of_model("fp4_param") and not c.of_model("fp4"):
        yield FP4_PARAM_NEEDS_FP4.error(
            "model.fp4_param",
            True,
            "model.fp4 is off: Megatron-Core raises a ValueError when the model is built",
            either(parameters_not_in(c, "fp4"), "choose an FP4 recipe"),
            parameters_not_in(c, "fp4"),
        )


def _tensor_parallel(c: Context) -> Iterator[Decision]:
    if c.of_model("sequence_parallel") and c.model.tensor_model_parallel_size < 2:
        yield SEQUENCE_PARALLEL_NEEDS_TP.error(
            "model.sequence_parallel",
            True,
            f"tensor_model_parallel_size is {c.model.tensor_model_parallel_size}: Megatron-Core "
            "raises a ValueError when the model is built",
        )


def _expert_parallel(c: Context) -> Iterator[Decision]:
    ep, experts = c.of_model("expert_model_parallel_size") or 1, c.of_model("num_moe_experts")
    # Expert layers have a separate layout on the ranks of one pipeline stage.
    ranks = c.replicas * c.model.tensor_model_parallel_size
    expert_tp = c.of_model("expert_tensor_parallel_size") or c.model.tensor_model_parallel_size
    if ep > 1 and not experts:
        alone = (Edit(_EP, 1), *(ep_overlap_off(c) if in_effect(c, EP_OVERLAP) else ()))
        yield EXPERTS_NEEDED.error(
            "model.expert_model_parallel_size",
            ep,
            "num_moe_experts is not set: Megatron-Core raises a ValueError",
            either(alone, "set model.num_moe_experts"),
            alone,
        )
    elif ep > 1 and ranks % (ep * expert_tp):
        edits, otherwise = _dividing_ep(experts, ep, expert_tp, ranks)
        yield EXPERTS_NEEDED.error(
            "model.expert_model_parallel_size",
            ep,
            f"EP={ep} x expert_tensor_parallel_size={expert_tp} does not divide the {ranks} ranks "
            "of a pipeline stage",
            either(edits, otherwise),
            edits,
        )
    dispatcher = c.of_model("moe_token_dispatcher_type")
    flex = dispatcher == "flex"
    shared = c.of_model("moe_shared_expert_intermediate_size")
    if shared and c.of_model("moe_shared_expert_overlap") and dispatcher != "alltoall":
        yield SHARED_EXPERT_NEEDS.error(
            "model.moe_shared_expert_overlap",
            True,
            f"moe_token_dispatcher_type is {dispatcher!r}",
            either(_NOT_SHARED, "model.moe_token_dispatcher_type=alltoall") if flex else None,
            _NOT_SHARED if flex else (Edit("model.moe_token_dispatcher_type", "alltoall"),),
        )


def _dividing_ep(experts: int, ep: int, expert_tp: int, ranks: int) -> tuple[Edits, str]:
    """The largest EP that divides the experts and the ranks, and what else would do.

    Experts that tensor parallelism does not split leave more ranks for EP.
    """

    def largest(splits: int) -> int:
        fits = (n for n in range(ep, 0, -1) if ranks % (n * splits) == 0 and experts % n == 0)
        return next(fits, 0)

    split, whole = largest(expert_tp), largest(1)
    if whole <= split:
        return (Edit(_EP, split),), ""
    kept = () if whole == ep else (Edit(_EP, whole),)
    alone = f"keep it and reduce EP to {split}" if split else ""
    return (*kept, Edit("model.expert_tensor_parallel_size", 1)), alone


def _data_parallel(c: Context, optimizer: Any) -> Iterator[Decision]:
    ddp = c.ddp
    switch = c.fsdp
    if switch is not None:
        yield FSDP.decide(
            f"{'ddp' if c.of_ddp(switch) else 'dist'}.{switch}",
            requested=True,
            effective=True,
            reason="FSDP shards and overlaps by itself: it is another data-parallel path, and the "
            "rules of Megatron DDP's buckets and gathers do not apply to it",
            outcome=Outcome.NOTE,
        )
        return
    distributed = bool(getattr(ddp, "use_distributed_optimizer", False))
    reduce, gather = ddp.overlap_grad_reduce, ddp.overlap_param_gather
    if gather:
        yield from _gather_needs(c, distributed=distributed, reduce=bool(reduce))
    if getattr(optimizer, "overlap_param_gather_with_optimizer_step", False):
        interleaved = c.pipeline_size > 1 and c.virtual_pipeline_size > 1
        fails = {
            "the distributed optimizer (AttributeError in the first step)": not distributed,
            "an interleaved pipeline (IndexError when the optimizer is built)": not interleaved,
        }
        lacking = [what for what, is_missing in fails.items() if is_missing]
        if lacking or not gather:
            lacking += [] if gather else ["overlap_param_gather"]
            starts = not any(fails.values())
            yield OPTIMIZER_STEP_NEEDS.decide(
                "optimizer.overlap_param_gather_with_optimizer_step",
                requested=True,
                effective=not starts,
                reason="it lacks " + " and ".join(lacking),
                outcome=Outcome.REFUSED if starts else Outcome.ERROR,
                remedy=either(off(WITH_STEP)(c), "set what is missing"),
                edits=off(WITH_STEP)(c),
            )
    if (reduce or gather) and c.replicas == 1:
        yield DP_ALONE.decide(
            "ddp.overlap_grad_reduce" if reduce else "ddp.overlap_param_gather",
            requested=None,
            effective=True,
            reason="no other rank has the same parameters: it is on, with nothing to hide",
            outcome=Outcome.NOTE,
        )


def _gather_needs(c: Context, *, distributed: bool, reduce: bool) -> Iterator[Decision]:
    knob = "ddp.overlap_param_gather"
    off = "ddp.use_distributed_optimizer is off"
    if not distributed and PARAM_GATHER_NEEDS_OPTIMIZER.holds(c.stack):
        yield PARAM_GATHER_NEEDS_OPTIMIZER.decide(
            knob,
            requested=True,
            effective=False,
            reason=off,
            outcome=Outcome.REFUSED,
            edits=distributed_optimizer(c),
        )
        return
    if not distributed and not c.of_optimizer("use_layer_wise_distributed_optimizer"):
        yield PARAM_GATHER_LAYER_WISE.decide(
            knob,
            requested=None,
            effective=True,
            reason=off,
            outcome=Outcome.NOTE,
            remedy=PARAM_GATHER_LAYER_WISE.remedy,
            edits=PARAM_GATHER_LAYER_WISE.edits,
        )
    if not reduce:
        yield PARAM_GATHER_NEEDS.decide(
            knob,
            requested=True,
            effective=False,
            reason="ddp.overlap_grad_reduce is off",
            outcome=Outcome.REFUSED,
            edits=overlapped_reduction(c),
        )
