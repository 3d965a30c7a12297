"""What Megatron-Core itself does with the effective knobs: refusals, silent fallbacks, defaults.

Facts of megatron-core 0.16. `comm_overlap` sets knobs; these rules tell what becomes of them when
the model is built and trained, or of knobs that were set on model and ddp without comm_overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron.bridge.models.pipeline_layout import virtual_size_of_layout
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule, unmet
from megatron.bridge.training.rules.buckets import bucket_consequences
from megatron.bridge.training.rules.context import Context, _CommOverlapConfig, fsdp_switch
from megatron.bridge.training.rules.expert import DELAY_WGRAD_GATE, EP_GATE, graph_scope
from megatron.bridge.training.rules.pipeline import pp_hazard
from megatron.bridge.training.rules.tensor import decide_tp_overlap

SEQUENCE_PARALLEL_NEEDS_TP = rule(
    "core.sequence-parallel",
    Dimension.TP,
    claim="Megatron-Core refuses sequence_parallel with tensor_model_parallel_size 1.",
    remedy="set model.sequence_parallel=false, or model.tensor_model_parallel_size > 1",
)
LAYOUT_SETS_VPP = rule(
    "core.layout-sets-vpp",
    Dimension.PP,
    claim="pipeline_model_parallel_layout sets the virtual pipeline size only after comm_overlap "
    "has chosen, which therefore chooses as without interleaving.",
    remedy="set model.virtual_pipeline_model_parallel_size to what the layout holds",
)
P2P_MODES_EXCLUDE = rule(
    "core.p2p-modes-exclude",
    Dimension.PP,
    claim="overlap_p2p_comm and batch_p2p_comm exclude each other: the interleaved schedule "
    "refuses both.",
    remedy="leave both to comm_overlap, or set batch_p2p_comm=false",
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
    remedy="set overlap_p2p_comm=true and batch_p2p_comm=false, or the flush to false",
)
SENT_THEN_FREED = rule(
    "core.sent-then-freed",
    Dimension.PP,
    claim="With overlap_p2p_comm, deallocate_pipeline_outputs frees an activation that may still "
    "be on its way: over gloo garbage arrives (seen with megatron-core 0.16.1); over NCCL it "
    "depends on who keeps the memory, and was not tried.",
    remedy="where ranks talk over gloo, set deallocate_pipeline_outputs=false on the model",
)
DEFERRED_WGRAD = rule(
    "core.defer-embedding-wgrad",
    Dimension.PP,
    claim="defer_embedding_wgrad_compute needs PP > 1, gradient_accumulation_fusion and a "
    "wgrad_deferral_limit that is not negative.",
    remedy="set all three (comm_overlap's default limit is -1)",
)
PARAM_GATHER_NEEDS = rule(
    "core.param-gather-needs",
    Dimension.DP,
    claim="overlap_param_gather is ignored without the distributed optimizer, and hides nothing "
    "without overlap_grad_reduce: nothing is then cut into buckets, and the first layer waits for "
    "the one gather (Megatron-LM refuses it).",
    remedy="set ddp.use_distributed_optimizer=true and ddp.overlap_grad_reduce=true, and leave "
    "overlap_grad_reduce of comm_overlap unset",
)
OPTIMIZER_STEP_NEEDS = rule(
    "core.param-gather-with-optimizer-step-needs",
    Dimension.DP,
    claim="overlap_param_gather_with_optimizer_step is ignored without overlap_param_gather; "
    "without the distributed optimizer or an interleaved pipeline Megatron-Core fails.",
    remedy="set what is missing, or overlap_param_gather_with_optimizer_step=false",
)
DP_ALONE = rule(
    "core.no-replica",
    Dimension.DP,
    claim="Data-parallel overlap has nothing to hide where no other rank holds the same "
    "parameters (data-parallel size x CP = 1).",
)
AS_WRITTEN = rule(
    "any.no-comm-overlap",
    Dimension.ANY,
    claim="Without a comm_overlap section nothing is chosen: the knobs on model and ddp stay as "
    "they are, Megatron-Core's defaults included (all overlap off, batch_p2p_comm on).",
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
FSDP = rule(
    "core.fsdp",
    Dimension.DP,
    claim="An FSDP is another data-parallel path: the rules of Megatron DDP do not describe it, "
    "and it wants CUDA_DEVICE_MAX_CONNECTIONS other than 1.",
)
EXPERTS_NEEDED = rule(
    "core.expert-parallel-needs-experts",
    Dimension.EP,
    claim="Megatron-Core refuses expert_model_parallel_size > 1 without experts, and one that "
    "does not divide the ranks.",
    remedy="set model.num_moe_experts, or model.expert_model_parallel_size to one that divides",
)
EP_OVERLAP_NEEDS = rule(
    "core.ep-overlap-needs",
    Dimension.EP,
    claim="Megatron-Core refuses overlap_moe_expert_parallel_comm with mtp_num_layers 0, with an "
    "MTP layer and PP = 1, and with a CUDA graph of another kind than Transformer Engine's or "
    "over the experts.",
    remedy="set model.mtp_num_layers=null and model.cuda_graph_impl=none",
)
DELAY_WGRAD_NEEDS = rule(
    "core.delay-wgrad-needs",
    Dimension.EP,
    claim="Megatron-Core refuses delay_wgrad_compute without EP overlap in effect, and with the "
    "legacy grouped GEMM.",
    remedy="set comm_overlap.overlap_moe_expert_parallel_comm=true and "
    "model.moe_use_legacy_grouped_gemm=false",
)
SHARED_EXPERT_NEEDS = rule(
    "core.shared-expert-overlap-needs",
    Dimension.EP,
    claim="moe_shared_expert_overlap works only with the alltoall token dispatcher.",
    remedy="set model.moe_token_dispatcher_type=alltoall, or moe_shared_expert_overlap=false",
)


def core_consequences(c: Context, optimizer: Any) -> Iterator[Decision]:
    """What Megatron-Core makes of the effective knobs: errors, fallbacks and notes.

    Args:
        c: the configurations as they are after mixed precision and comm_overlap.
        optimizer: the optimizer configuration.
    """
    yield from _precision(c)
    yield from _tensor_parallel(c)
    yield from _pipeline(c)
    yield from _expert_parallel(c)
    yield from _data_parallel(c, optimizer)
    yield from bucket_consequences(c, optimizer)


_GATES = (
    ("overlap_moe_expert_parallel_comm", EP_GATE),
    ("delay_wgrad_compute", DELAY_WGRAD_GATE),
)

# Knobs that nobody decides about without comm_overlap, with the dimension that each belongs to.
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
    """What holds where there is no comm_overlap: every knob as written, past the same gates.

    Transformer Engine ignores a TP overlap whose needs are not met, and Megatron-Core asserts the
    expert-parallel ones; nobody looks for the pipeline hazard.
    """
    if c.of_model("tp_comm_overlap"):
        yield decide_tp_overlap(replace(c, request=_CommOverlapConfig(tp_comm_overlap=True)))
    yield from as_written(
        c, AS_WRITTEN, "there is no comm_overlap section, so {section} keeps its own value"
    )
    yield from pp_hazard(
        c.model,
        overlap_p2p_comm=bool(c.of_model("overlap_p2p_comm")),
        batch_p2p_comm=bool(c.of_model("batch_p2p_comm")),
        section="model",
    )


def as_written(c: Context, speaks: Rule, reason: str) -> Iterator[Decision]:
    """Every knob that nobody decides about, as it is; a broken need of Megatron-Core is an error.

    Args:
        speaks: the rule that says so.
        reason: why; ``{section}`` in it stands for the knob's section.
    """
    broken = {knob: list(unmet(gate, c)) for knob, gate in _GATES if c.of_model(knob)}
    for dotted, dimension in _AS_WRITTEN.items():
        section, _, knob = dotted.partition(".")
        value = getattr(c.model if section == "model" else c.ddp, knob, None)
        for need, found in broken.get(knob, ()):
            yield _error(need, dotted, True, found)
        if not broken.get(knob) and not (knob == "tp_comm_overlap" and value):
            yield speaks.decide(
                dotted,
                requested=None,
                effective=value,
                reason=reason.format(section=section),
                outcome=Outcome.DEFAULT,
                dimension=dimension,
            )


def _error(broken: Rule, knob: str, value: Any, reason: str) -> Decision:
    return broken.decide(
        knob, requested=value, effective=value, reason=reason, outcome=Outcome.ERROR
    )


def _precision(c: Context) -> Iterator[Decision]:
    gather = getattr(c.ddp, "fp8_param_gather", False)
    if getattr(c.ddp, "reuse_grad_buf_for_mxfp8_param_ag", False) and not gather:
        yield _error(
            REUSE_NEEDS_GATHER,
            "ddp.reuse_grad_buf_for_mxfp8_param_ag",
            True,
            "ddp.fp8_param_gather is off: Megatron-Core raises an AssertionError",
        )
    if c.of_model("fp8_param") and not c.of_model("fp8"):
        yield _error(
            FP8_PARAM_NEEDS_FP8,
            "model.fp8_param",
            True,
            "model.fp8 is off: Megatron-Core raises a ValueError when the model is built",
        )


def _tensor_parallel(c: Context) -> Iterator[Decision]:
    if c.of_model("sequence_parallel") and c.model.tensor_model_parallel_size < 2:
        yield _error(
            SEQUENCE_PARALLEL_NEEDS_TP,
            "model.sequence_parallel",
            True,
            f"tensor_model_parallel_size is {c.model.tensor_model_parallel_size}: Megatron-Core "
            "raises a ValueError when the model is built",
        )


def layout_sets_vpp(model: Any) -> Iterator[Decision]:
    """The virtual pipeline size that a layout holds, put on the model as Megatron-Core does."""
    layout = getattr(model, "pipeline_model_parallel_layout", None)
    given = getattr(model, "virtual_pipeline_model_parallel_size", None)
    held = virtual_size_of_layout(layout, model.pipeline_model_parallel_size or 1)
    if given is None and held is not None and held > 1:
        model.virtual_pipeline_model_parallel_size = held
        yield LAYOUT_SETS_VPP.decide(
            "model.virtual_pipeline_model_parallel_size",
            requested=None,
            effective=held,
            reason=f"pipeline_model_parallel_layout holds {held} chunks a stage",
            outcome=Outcome.NOTE,
            remedy=f"set model.virtual_pipeline_model_parallel_size={held}",
        )


def _pipeline(c: Context) -> Iterator[Decision]:
    overlap, batch = c.of_model("overlap_p2p_comm"), c.of_model("batch_p2p_comm")
    pp, vpp = c.pipeline_size, c.virtual_pipeline_size
    if pp > 1 and vpp > 1 and overlap and batch:
        yield _error(
            P2P_MODES_EXCLUDE,
            "model.overlap_p2p_comm",
            True,
            "batch_p2p_comm is on as well, which the interleaved schedule refuses",
        )
    if pp > 1 and vpp <= 1 and overlap:
        yield _error(
            P2P_OVERLAP_NEEDS_INTERLEAVING,
            "model.overlap_p2p_comm",
            True,
            f"PP={pp} without interleaving: that schedule raises a ValueError at the first step",
        )
    if c.of_model("overlap_p2p_comm_warmup_flush") and (not overlap or batch):
        yield _error(
            WARMUP_FLUSH,
            "model.overlap_p2p_comm_warmup_flush",
            True,
            f"overlap_p2p_comm is {overlap} and batch_p2p_comm is {batch}",
        )
    if pp > 1 and vpp > 1 and overlap and not batch and c.of_model("deallocate_pipeline_outputs"):
        yield SENT_THEN_FREED.decide(
            "model.deallocate_pipeline_outputs",
            requested=None,
            effective=True,
            reason=f"PP={pp} with VPP={vpp} and overlap_p2p_comm: an activation is freed before "
            "its sending is waited for; over gloo that trains on garbage",
            outcome=Outcome.NOTE,
            remedy=SENT_THEN_FREED.remedy,
        )
    if c.of_model("defer_embedding_wgrad_compute"):
        limit = c.of_model("wgrad_deferral_limit", 0)
        broken = {
            "pipeline_model_parallel_size is 1": (pp <= 1, "use pipeline parallelism"),
            "gradient_accumulation_fusion is off": (
                not c.of_model("gradient_accumulation_fusion"),
                "set model.gradient_accumulation_fusion=true",
            ),
            f"wgrad_deferral_limit is {limit}": (
                limit < 0,
                "set comm_overlap.wgrad_deferral_limit=0 (its default there is -1)",
            ),
        }
        found = {told: remedy for told, (is_broken, remedy) in broken.items() if is_broken}
        if found:
            yield DEFERRED_WGRAD.decide(
                "model.defer_embedding_wgrad_compute",
                requested=True,
                effective=True,
                reason=", ".join(found) + ": Megatron-Core raises a ValueError",
                outcome=Outcome.ERROR,
                remedy=" and ".join(found.values()),
            )


def _expert_parallel(c: Context) -> Iterator[Decision]:
    ep, experts = c.of_model("expert_model_parallel_size") or 1, c.of_model("num_moe_experts")
    # Expert layers have a layout of their own on the ranks of one pipeline stage.
    ranks = c.replicas * c.model.tensor_model_parallel_size
    expert_tp = c.of_model("expert_tensor_parallel_size") or c.model.tensor_model_parallel_size
    if ep > 1 and not experts:
        yield _error(
            EXPERTS_NEEDED,
            "model.expert_model_parallel_size",
            ep,
            "num_moe_experts is not set: Megatron-Core raises a ValueError",
        )
    elif ep > 1 and ranks % (ep * expert_tp):
        yield _error(
            EXPERTS_NEEDED,
            "model.expert_model_parallel_size",
            ep,
            f"EP={ep} x expert_tensor_parallel_size={expert_tp} does not divide the {ranks} ranks "
            "of a pipeline stage",
        )
    overlap, mtp = c.of_model("overlap_moe_expert_parallel_comm"), c.of_model("mtp_num_layers")
    if overlap:
        graph, scope = c.of_model("cuda_graph_impl") or "none", graph_scope(c)
        if mtp == 0:
            found = "mtp_num_layers is 0, which Megatron-Core takes for neither None nor 1"
        elif mtp == 1 and c.pipeline_size == 1:
            found = "mtp_num_layers is 1 and pipeline_model_parallel_size is 1"
        elif graph != "none" and (graph != "transformer_engine" or scope & {"moe", "mlp"}):
            found = f"cuda_graph_impl is {graph} with scope {sorted(scope) or 'the whole layer'}"
        else:
            found = ""
        if found:
            yield _error(EP_OVERLAP_NEEDS, "model.overlap_moe_expert_parallel_comm", True, found)
    if c.of_model("delay_wgrad_compute"):
        if not overlap:
            found = "overlap_moe_expert_parallel_comm is not in effect on the model"
        elif c.of_model("moe_use_legacy_grouped_gemm"):
            found = "moe_use_legacy_grouped_gemm is on"
        else:
            found = ""
        if found:
            yield _error(DELAY_WGRAD_NEEDS, "model.delay_wgrad_compute", True, found)
    dispatcher = c.of_model("moe_token_dispatcher_type")
    shared = c.of_model("moe_shared_expert_intermediate_size")
    if shared and c.of_model("moe_shared_expert_overlap") and dispatcher != "alltoall":
        yield _error(
            SHARED_EXPERT_NEEDS,
            "model.moe_shared_expert_overlap",
            True,
            f"moe_token_dispatcher_type is {dispatcher!r}",
        )


def _data_parallel(c: Context, optimizer: Any) -> Iterator[Decision]:
    ddp = c.ddp
    switch = fsdp_switch(ddp)
    if switch is not None:
        yield FSDP.decide(
            f"ddp.{switch}",
            requested=True,
            effective=True,
            reason="FSDP shards and overlaps by itself: it is another data-parallel path, to which "
            "the rules of Megatron DDP's buckets and gathers do not apply",
            outcome=Outcome.NOTE,
        )
        return
    distributed = bool(getattr(ddp, "use_distributed_optimizer", False))
    reduce, gather = ddp.overlap_grad_reduce, ddp.overlap_param_gather
    if gather and not (distributed and reduce):
        missing = "use_distributed_optimizer" if not distributed else "overlap_grad_reduce"
        yield PARAM_GATHER_NEEDS.decide(
            "ddp.overlap_param_gather",
            requested=True,
            effective=False,
            reason=f"ddp.{missing} is off",
            outcome=Outcome.REFUSED,
        )
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
            )
    if (reduce or gather) and c.replicas == 1:
        yield DP_ALONE.decide(
            "ddp.overlap_grad_reduce" if reduce else "ddp.overlap_param_gather",
            requested=None,
            effective=True,
            reason="no other rank holds the same parameters: it is on, with nothing to hide",
            outcome=Outcome.NOTE,
        )
