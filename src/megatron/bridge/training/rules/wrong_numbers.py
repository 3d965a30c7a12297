"""Combinations with which a version trains on wrong numbers, and no check stops it.

Each is a known bug with the versions that have it. They outrank every other finding: a slow run is
seen, and a wrong one often is not. Reports and changes are named where they are public; what was
not run here says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.remedies import between_steps, parameters_not_in
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.refusal import knob_value
from megatron.bridge.training.versions import Range


@dataclass(frozen=True)
class WrongNumbers:
    """A combination that gives wrong numbers.

    Attributes:
        rule: the rule, with the versions that have the bug.
        knob: the setting that it is about.
        found: what was found, as the start of a reason; empty where the run is not affected.
        follows: what happens then, as the end of the reason.
        edits: what to set, with the keys that this run has to set.
        otherwise: another remedy; empty where there is none.
    """

    rule: Rule
    knob: str
    found: Callable[[Context], str]
    follows: str
    edits: Callable[[Context], tuple[Edit, ...]]
    otherwise: str = ""


def wrong_numbers(c: Context) -> Iterator[Decision]:
    """Every known bug of the run's versions that its settings meet."""
    for each in WRONG:
        if each.rule.holds(c.stack) and (found := each.found(c)):
            value = knob_value(c, each.knob)
            edits = each.edits(c)
            also = f", or {each.otherwise}" if each.otherwise else ""
            yield each.rule.decide(
                each.knob,
                requested=value,
                effective=value,
                reason=f"{found}: {each.follows}",
                outcome=Outcome.WRONG_NUMBERS,
                remedy=f"{in_words(edits)}{also}",
                edits=edits,
            )
    yield from _sharded_experts(c)


def _reused_buffer(c: Context) -> bool:
    """Whether MXFP8 parameters are gathered through the gradient buffer, in the distributed
    optimizer's buckets."""
    return bool(
        c.fsdp is None
        and c.of_ddp("use_distributed_optimizer")
        and c.of_ddp("fp8_param_gather")
        and c.of_ddp("reuse_grad_buf_for_mxfp8_param_ag")
    )


def _several_instances(c: Context) -> str:
    instances = c.of_ddp("num_distributed_optimizer_instances") or 1
    if c.fsdp is not None or instances < 2 or not c.of_ddp("overlap_grad_reduce"):
        return ""
    return f"num_distributed_optimizer_instances is {instances} and overlap_grad_reduce is on"


def _experts_cleared(c: Context) -> str:
    ep = c.of_model("expert_model_parallel_size") or 1
    if not _reused_buffer(c) or c.of_ddp("overlap_param_gather"):
        return ""
    # Experts have an optimizer of their own only where they are reduced over other ranks.
    if not c.of_model("num_moe_experts") or ep < 2:
        return ""
    return (
        f"MXFP8 parameters are gathered through the gradient buffer, EP is {ep} and "
        "overlap_param_gather is off"
    )


def _gathers_differ(c: Context) -> str:
    on_ddp = bool(c.of_ddp("overlap_param_gather"))
    on_optimizer = bool(c.of_optimizer("overlap_param_gather"))
    if not _reused_buffer(c) or on_ddp == on_optimizer:
        return ""
    words = {True: "on", False: "off"}
    return (
        "MXFP8 parameters are gathered through the gradient buffer, and overlap_param_gather is "
        f"{words[on_ddp]} for ddp and {words[on_optimizer]} for the optimizer"
    )


def _with_optimizer_step(c: Context) -> str:
    asked = c.of_optimizer("overlap_param_gather_with_optimizer_step")
    if not _reused_buffer(c) or not asked or not c.of_ddp("overlap_param_gather"):
        return ""
    return (
        "MXFP8 parameters are gathered through the gradient buffer and "
        "overlap_param_gather_with_optimizer_step is on"
    )


def _forced_gather(c: Context) -> str:
    gathers = c.of_ddp("fp8_param_gather") and c.of_ddp("overlap_param_gather")
    if c.fsdp is not None or not gathers or not c.of_ddp("use_distributed_optimizer"):
        return ""
    between = between_steps(c.train)
    if not between:
        return ""
    return f"FP8 parameters are gathered with overlap, and between steps there is {between}"


def _apart_positions(c: Context) -> str:
    learned = c.of_model("position_embedding_type") == "learned_absolute"
    depth = c.of_model("mtp_num_layers") or 0
    if not learned or not depth or c.pipeline_size < 2:
        return ""
    return (
        f"mtp_num_layers is {depth}, PP is {c.pipeline_size} and position_embedding_type is "
        "learned_absolute"
    )


def _replicated_experts(c: Context) -> str:
    tp = c.model.tensor_model_parallel_size or 1
    expert_tp = c.of_model("expert_tensor_parallel_size") or tp
    ep = c.of_model("expert_model_parallel_size") or 1
    if not c.of_model("num_moe_experts") or ep > 1 or expert_tp == tp:
        return ""
    return f"EP is 1, and expert_tensor_parallel_size is {expert_tp} where TP is {tp}"


def _alike(c: Context) -> tuple[Edit, ...]:
    """Experts over as many ranks as a dense layer: whole ones if they divide, else divided ones."""
    tp = c.model.tensor_model_parallel_size or 1
    expert_tp = c.of_model("expert_tensor_parallel_size") or tp
    ep = tp // expert_tp
    if ep > 1 and tp % expert_tp == 0 and c.of_model("num_moe_experts") % ep == 0:
        return (Edit("model.expert_model_parallel_size", ep),)
    return (Edit("model.expert_tensor_parallel_size", tp),)


def _gather(c: Context, *, on: bool) -> tuple[Edit, ...]:
    """The parameters' gather overlapped or not, with what that needs."""
    names = ["ddp.overlap_grad_reduce"] if on else []
    # comm_overlap sets ddp's and the optimizer's together.
    names += ["ddp.overlap_param_gather"]
    names += [] if c.sets_data_parallel else ["optimizer.overlap_param_gather"]
    return tuple(Edit(c.key(name), on) for name in names)


def _experts_kept(c: Context) -> tuple[Edit, ...]:
    """The gather overlapped; without FP8 parameters where an evaluation or a checkpoint would then
    force a gather (wrong.fp8-forced-gather)."""
    return parameters_not_in(c, "fp8") if between_steps(c.train) else _gather(c, on=True)


def _not_forced(c: Context) -> tuple[Edit, ...]:
    """The gather not overlapped; without FP8 parameters where experts would then be cleared
    (wrong.mxfp8-experts-cleared)."""
    divided = c.of_model("num_moe_experts") and (c.of_model("expert_model_parallel_size") or 1) > 1
    return parameters_not_in(c, "fp8") if _reused_buffer(c) and divided else _gather(c, on=False)


WRONG_INSTANCES = rule(
    "wrong.optimizer-instances",
    Dimension.DP,
    claim="With num_distributed_optimizer_instances > 1 and overlap_grad_reduce, the "
    "reduction's stream waits for the default stream, and the gradient hooks run on "
    "another: gradients may be reduced before they are complete (a public report and the "
    "source; not run here).",
    remedy="set ddp.num_distributed_optimizer_instances=1, or overlap_grad_reduce=false",
    versions=(Range("core", until="0.17.0"),),
    source="fixed by Megatron-LM 3548385ac3",
    is_bug=True,
)

APART_POSITIONS = rule(
    "wrong.mtp-learned-positions",
    Dimension.PP,
    claim="With multi-token prediction (mtp_num_layers) over pipeline stages and "
    "position_embedding_type learned_absolute, the first stage and the one with the predictions "
    "have position embeddings of their own: neither their first values nor their gradients are "
    "made equal, as those of the word embeddings are (trained with megatron-core 0.16.1; the "
    "source is the same to 0.19.0; Megatron-LM refuses it).",
    remedy="set model.position_embedding_type=rope, or model.mtp_num_layers=null",
    source="Megatron-Core's default_position_embedding_ranks in parallel_state.py and "
    "_allreduce_position_embedding_grads in finalize_model_grads.py",
    rests_on=("model.position_embedding_type",),
)

REPLICATED_EXPERTS = rule(
    "wrong.experts-reduced-as-dense",
    Dimension.EP,
    claim="With EP of 1 and expert_tensor_parallel_size other than TP, experts' gradients are "
    "reduced over the replicas of a dense layer, although experts have others: with a smaller "
    "one, the ranks of a tensor-parallel group train experts of their own on their own tokens; "
    "with a larger one, gradients of different parts of an expert are added (both trained with "
    "megatron-core 0.16.1; the source is the same to 0.18.2).",
    remedy="set model.expert_tensor_parallel_size to TP, or model.expert_model_parallel_size "
    "above 1",
    versions=(Range("core", until="0.19.0"),),
    source="the attribute allreduce of experts' weights in Megatron-Core; Megatron-LM pull "
    "request 5916",
    is_bug=True,
)

WRONG: tuple[WrongNumbers, ...] = (
    WrongNumbers(
        REPLICATED_EXPERTS,
        "model.expert_tensor_parallel_size",
        _replicated_experts,
        "experts' gradients are reduced over the replicas of a dense layer, which are not those "
        "of an expert: from the first step on, experts are wrong",
        _alike,
    ),
    WrongNumbers(
        WRONG_INSTANCES,
        "ddp.num_distributed_optimizer_instances",
        _several_instances,
        "gradients may be reduced before they are complete",
        lambda c: (Edit("ddp.num_distributed_optimizer_instances", 1),),
        "set overlap_grad_reduce=false and overlap_param_gather=false",
    ),
    WrongNumbers(
        rule(
            "wrong.mxfp8-experts-cleared",
            Dimension.DP,
            claim="With MXFP8 parameters gathered through the gradient buffer, experts and "
            "overlap_param_gather off, the dense optimizer's gather clears what the experts' "
            "optimizer has staged in the buffers: the loss becomes NaN.",
            remedy="set overlap_grad_reduce=true and overlap_param_gather=true, or "
            "reuse_grad_buf_for_mxfp8_param_ag=false with fp8_param_gather=false",
            versions=(Range("core", until="0.18.0"),),
            source="Megatron-LM issue 2272, fixed by pull request 4769",
            is_bug=True,
        ),
        "ddp.overlap_param_gather",
        _experts_cleared,
        "the dense parameters' gather clears what the experts have staged, and the loss becomes "
        "NaN",
        _experts_kept,
    ),
    WrongNumbers(
        rule(
            "wrong.mxfp8-gathers-differ",
            Dimension.DP,
            claim="With MXFP8 parameters gathered through the gradient buffer, the optimizer "
            "defers the gather by its own overlap_param_gather, and ddp gathers by ddp's: where "
            "they differ, parameters are gathered from a buffer that does not have them.",
            remedy="set overlap_param_gather to the same value on ddp and optimizer",
            versions=(Range("core", until="0.18.0"),),
            source="Megatron-LM pull request 4982; Megatron-Bridge 4bb633034 keeps them equal",
            is_bug=True,
        ),
        "optimizer.overlap_param_gather",
        _gathers_differ,
        "parameters are gathered from a buffer that does not have them",
        # comm_overlap sets ddp's alone.
        lambda c: (
            (Edit("optimizer.overlap_param_gather", True),)
            if c.of_ddp("overlap_param_gather")
            else _gather(c, on=True)
        ),
    ),
    WrongNumbers(
        rule(
            "wrong.mxfp8-with-optimizer-step",
            Dimension.DP,
            claim="With MXFP8 parameters gathered through the gradient buffer, "
            "overlap_param_gather_with_optimizer_step gives NaN gradients (megatron-core 0.19.0 "
            "refuses the two together).",
            remedy="set overlap_param_gather_with_optimizer_step=false",
            versions=(Range("core", until="0.19.0"),),
            source="Megatron-Bridge pull request 2014; refused since Megatron-LM 0552f29307",
        ),
        "optimizer.overlap_param_gather_with_optimizer_step",
        _with_optimizer_step,
        "the gather reads a buffer that the optimizer has not filled, and gradients become NaN",
        lambda c: (Edit(c.key("optimizer.overlap_param_gather_with_optimizer_step"), False),),
    ),
    WrongNumbers(
        rule(
            "wrong.fp8-forced-gather",
            Dimension.DP,
            claim="With FP8 parameters gathered with overlap, an evaluation or a checkpoint "
            "between steps forces a gather whose result is not converted: weights are stale then "
            "and in the next step.",
            remedy="set overlap_param_gather=false, or evaluate and save only after the last step",
            versions=(Range("core", until="0.18.0"),),
            source="fixed by Megatron-LM 08bad7a48f",
            is_bug=True,
        ),
        "ddp.overlap_param_gather",
        _forced_gather,
        "the gather that it forces is not converted to FP8, and weights are stale then and in the "
        "next step",
        _not_forced,
        "evaluate and save only after the last step",
    ),
    WrongNumbers(
        APART_POSITIONS,
        "model.position_embedding_type",
        _apart_positions,
        "the stage with the predictions has position embeddings of its own, whose gradients are "
        "not added to those of the first stage",
        lambda c: (Edit("model.position_embedding_type", "rope"),),
        "set model.mtp_num_layers=null",
    ),
)
"""Every known bug, in the order in which they are shown."""

SHARDED_EXPERTS = rule(
    "wrong.fsdp-sharded-experts",
    Dimension.DP,
    claim="A public report says that Megatron-FSDP with data_parallel_sharding_strategy "
    "optim_grads_params counts the experts' gradients of each microbatch twice where EP is as "
    "large as the data-parallel group. It is not verified for any version.",
    remedy="compare the gradient norm with that of a run whose EP is smaller",
)


def _sharded_experts(c: Context) -> Iterator[Decision]:
    ep = c.of_model("expert_model_parallel_size") or 1
    strategy = c.of_ddp("data_parallel_sharding_strategy")
    expert_tp = c.of_model("expert_tensor_parallel_size") or c.model.tensor_model_parallel_size
    ranks = c.replicas * (c.model.tensor_model_parallel_size or 1)
    fsdp = c.fsdp in ("use_megatron_fsdp", "use_custom_fsdp")
    if fsdp and strategy == "optim_grads_params" and ep > 1 and ep * (expert_tp or 1) == ranks:
        yield SHARDED_EXPERTS.decide(
            "ddp.data_parallel_sharding_strategy",
            requested=None,
            effective=strategy,
            reason=f"EP={ep} leaves one replica of each expert, and a public report says that the "
            "experts' gradients are then counted twice for each microbatch (not verified)",
            outcome=Outcome.NOTE,
            remedy=SHARDED_EXPERTS.remedy,
        )
