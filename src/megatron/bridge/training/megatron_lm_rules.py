"""What Megatron-LM's argument checks make of a command line, where Bridge would do otherwise.

Megatron-LM has no comm_overlap: every knob is a flag, a few are on by default with an interleaved
pipeline, and some combinations that Megatron-Bridge switches off or lets pass stop the job at
start. Facts of Megatron-LM's main branch, August 2026 (megatron/training/arguments.py); what
Megatron-Core makes of the result is the same for both and stands in `megatron_core_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.models.parameter_count import UncountableModel
from megatron.bridge.training.bucketing import bucketing
from megatron.bridge.training.comm_overlap import InstalledSoftware
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule
from megatron.bridge.training.rules.context import Context, _CommOverlapConfig, fsdp_switch
from megatron.bridge.training.rules.megatron_core import (
    OPTIMIZER_STEP_NEEDS,
    PARAM_GATHER_NEEDS,
    as_written,
    core_consequences,
    layout_sets_vpp,
)
from megatron.bridge.training.rules.tensor import decide_tp
from megatron.bridge.training.runtime_update import Update, data_parallel_size
from megatron.bridge.training.software import Software
from megatron.bridge.training.userbuffers.settings import check_userbuffers

SEQUENCE_PARALLEL_OFF = rule(
    "lm.sequence-parallel-off",
    Dimension.TP,
    claim="Megatron-LM switches --sequence-parallel off where --tensor-model-parallel-size is 1, "
    "with no more than a warning.",
    remedy="give --tensor-model-parallel-size 2 or more, or leave --sequence-parallel out",
)
TP_OVERLAP_NEEDS = rule(
    "lm.tp-overlap-needs",
    Dimension.TP,
    claim="--tp-comm-overlap without sequence parallelism in effect, or without Transformer "
    "Engine, stops a Megatron-LM job at start (Megatron-Bridge switches the overlap off).",
    remedy="give --sequence-parallel with --tensor-model-parallel-size above 1, or leave "
    "--tp-comm-overlap out",
)
ONE_CHUNK = rule(
    "lm.one-chunk-no-interleaving",
    Dimension.PP,
    claim="A virtual pipeline of one chunk a stage is none to Megatron-LM: the schedule is not "
    "interleaved.",
    remedy="give a smaller --num-layers-per-virtual-pipeline-stage, or "
    "--num-virtual-stages-per-pipeline-rank above 1",
)
INTERLEAVING_NEEDS_STAGES = rule(
    "lm.interleaving-needs-stages",
    Dimension.PP,
    claim="Megatron-LM refuses an interleaved schedule with one pipeline stage; with p2p overlap "
    "off it refuses two as well, because previous and next stage are then one peer and their "
    "messages in a batch would swap places.",
    remedy="leave --no-overlap-p2p-communication out, or use more pipeline stages",
)
P2P_DEFAULT = rule(
    "lm.p2p-overlap",
    Dimension.PP,
    claim="overlap_p2p_comm is on by default with an interleaved schedule "
    "(--no-overlap-p2p-communication turns it off) and forced off without; batch_p2p_comm is its "
    "opposite.",
    remedy="give --num-virtual-stages-per-pipeline-rank above 1",
)
ALIGN_DEFAULT = rule(
    "lm.align-param-gather",
    Dimension.DP,
    claim="align_param_gather is on by default with an interleaved schedule "
    "(--no-align-param-gather turns it off) and forced off without.",
)
PARAM_GATHER = rule(
    "lm.param-gather-needs",
    Dimension.DP,
    claim="--overlap-param-gather without --use-distributed-optimizer and --overlap-grad-reduce "
    "stops a Megatron-LM job at start.",
    remedy="give --use-distributed-optimizer and --overlap-grad-reduce",
)
OPTIMIZER_STEP = rule(
    "lm.param-gather-with-optimizer-step-needs",
    Dimension.DP,
    claim="--overlap-param-gather-with-optimizer-step stops a Megatron-LM job at start without "
    "the distributed optimizer, --overlap-param-gather and an interleaved schedule, and with a "
    "distributed checkpoint format (the default is one).",
    remedy="give what is missing and --ckpt-format torch, or leave the flag out",
)
GRADS_IN_FP32 = rule(
    "lm.grads-in-fp32",
    Dimension.PRECISION,
    claim="With --bf16 and fp32 main gradients, gradients are accumulated and reduced in fp32, "
    "whether or not --accumulate-allreduce-grads-in-fp32 is given, unless --grad-reduce-in-bf16 "
    "is.",
    remedy="give --grad-reduce-in-bf16 to reduce half the bytes",
)
FP8_GATHER = rule(
    "lm.fp8-param-gather-needs",
    Dimension.PRECISION,
    claim="--fp8-param-gather without --use-distributed-optimizer or an FSDP stops a Megatron-LM "
    "job at start.",
    remedy="give --use-distributed-optimizer, or leave --fp8-param-gather out",
)
BUCKETS_ASKED = rule(
    "lm.bucket-number",
    Dimension.DP,
    claim="--ddp-num-buckets N, from 1 up, makes a bucket as large as the parameters of a rank "
    "over N; "
    "--ddp-bucket-size and --ddp-num-buckets exclude each other.",
    remedy="give one of --ddp-bucket-size and --ddp-num-buckets",
)
AS_FLAGS_SAY = rule(
    "lm.as-flags-say",
    Dimension.ANY,
    claim="Every other knob is what its flag says: all overlap is off by default.",
    opt_in=True,
)

_STOPS = {PARAM_GATHER_NEEDS.id: PARAM_GATHER, OPTIMIZER_STEP_NEEDS.id: OPTIMIZER_STEP}
"""What Megatron-Core goes on without, and Megatron-LM refuses."""

_DECIDED_HERE = frozenset(
    {
        "model.tp_comm_overlap",
        "model.overlap_p2p_comm",
        "model.batch_p2p_comm",
        "ddp.align_param_gather",
    }
)


@dataclass
class MegatronLmRequest:
    """Flags of Megatron-LM that are no field of Megatron-Core's configurations.

    Attributes:
        ddp_num_buckets: --ddp-num-buckets.
        grad_reduce_in_bf16: --grad-reduce-in-bf16.
        main_grads_dtype: --main-grads-dtype, "fp32" or "bf16".
        use_torch_fsdp2: --use-torch-fsdp2.
        ckpt_format: --ckpt-format.
    """

    ddp_num_buckets: int | None = None
    grad_reduce_in_bf16: bool = False
    main_grads_dtype: str = "fp32"
    use_torch_fsdp2: bool = False
    ckpt_format: str = "torch_dist"


def update_megatron_lm(
    run: Any, request: MegatronLmRequest, world_size: int, *, software: Software | None = None
) -> Update:
    """Make a Megatron-LM run's configurations effective, in place, as its argument checks do.

    Args:
        run: its model, optimizer and ddp, as the flags say and with Megatron-LM's own defaults
            (overlap_p2p_comm and align_param_gather on) where there is no flag.
        request: the flags that they have no field for.
        world_size: number of ranks (GPUs) of the job.
        software: what is installed; by default looked up.

    Raises:
        OverlapConfigError: the layout does not divide the world size.
    """
    dp_size = data_parallel_size(run.model, world_size)
    run.ddp.use_torch_fsdp2 = request.use_torch_fsdp2
    context = Context(
        request=_CommOverlapConfig(),
        model=run.model,
        ddp=run.ddp,
        software=software or InstalledSoftware(),
        data_parallel_size=dp_size,
    )
    decisions = [
        *_precision(run, request),
        *_pipeline(run),
        *_tensor_parallel(context),
        *_buckets(context, run, request),
    ]
    decisions += [
        d
        for d in as_written(context, AS_FLAGS_SAY, "Megatron-LM takes it as its flag says")
        if d.knob not in _DECIDED_HERE
    ]
    for decision in core_consequences(context, run.optimizer):
        stop = _STOPS.get(decision.rule)
        decisions.append(_stopped(decision, stop) if stop is not None else decision)
    decisions += _distributed_checkpoint(run, request, decisions)
    return Update(dp_size, [_told_in_flags(d) for d in decisions])


def _error(speaks: Rule, knob: str, value: Any, reason: str, remedy: str | None = None) -> Decision:
    return speaks.decide(
        knob,
        requested=value,
        effective=value,
        reason=reason,
        outcome=Outcome.ERROR,
        remedy=remedy,
    )


def _stopped(decision: Decision, by: Rule) -> Decision:
    """A refusal of Megatron-Core's as the error that Megatron-LM makes of it."""
    return replace(
        decision,
        outcome=Outcome.ERROR,
        rule=by.id,
        reason=f"{decision.reason}: Megatron-LM stops at start",
        remedy=by.remedy,
    )


def _told_in_flags(decision: Decision) -> Decision:
    if decision.rule.startswith("lm.") or decision.remedy is None:
        return decision
    return replace(decision, remedy=remedy_in_flags(decision.rule, decision.remedy))


def _precision(run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    knob = "ddp.grad_reduce_in_fp32"
    given = bool(run.ddp.grad_reduce_in_fp32)
    if run.model.bf16:
        if request.grad_reduce_in_bf16:
            run.ddp.grad_reduce_in_fp32 = False
            reason = "--grad-reduce-in-bf16 is given"
        elif request.main_grads_dtype != "fp32":
            reason = f"--main-grads-dtype is {request.main_grads_dtype}"
        else:
            run.ddp.grad_reduce_in_fp32 = True
            reason = "--bf16 with fp32 main gradients: Megatron-LM turns it on by itself"
        effective = run.ddp.grad_reduce_in_fp32
        refused = given and not effective
        yield GRADS_IN_FP32.decide(
            knob,
            requested=given or None,
            effective=effective,
            reason=reason,
            outcome=Outcome.REFUSED if refused else Outcome.DEFAULT,
            remedy="leave --grad-reduce-in-bf16 out" if refused else GRADS_IN_FP32.remedy,
        )
    distributed = bool(run.ddp.use_distributed_optimizer)
    if run.ddp.fp8_param_gather and not distributed and fsdp_switch(run.ddp) is None:
        yield _error(
            FP8_GATHER,
            "ddp.fp8_param_gather",
            True,
            "neither --use-distributed-optimizer nor an FSDP is given: Megatron-LM stops at start",
        )


def _pipeline(run: Any) -> Iterator[Decision]:
    model = run.model
    pp = model.pipeline_model_parallel_size or 1
    if model.virtual_pipeline_model_parallel_size == 1:
        model.virtual_pipeline_model_parallel_size = None
        yield ONE_CHUNK.decide(
            "model.virtual_pipeline_model_parallel_size",
            requested=1,
            effective=None,
            reason="its layers make one chunk a stage",
            outcome=Outcome.REFUSED,
        )
    yield from layout_sets_vpp(model)
    interleaved = (model.virtual_pipeline_model_parallel_size or 1) > 1
    asked = bool(model.overlap_p2p_comm)
    if interleaved and (pp < 2 or (pp == 2 and not asked)):
        off = "" if pp < 2 else " and --no-overlap-p2p-communication"
        yield _error(
            INTERLEAVING_NEEDS_STAGES,
            "model.virtual_pipeline_model_parallel_size",
            model.virtual_pipeline_model_parallel_size,
            f"PP={pp} with VPP={model.virtual_pipeline_model_parallel_size}{off}: Megatron-LM "
            "stops at start",
            "give --pipeline-model-parallel-size above 1" if pp < 2 else None,
        )
    model.overlap_p2p_comm = asked and interleaved
    model.batch_p2p_comm = not model.overlap_p2p_comm
    run.ddp.align_param_gather = bool(run.ddp.align_param_gather) and interleaved
    layout = (
        f"PP={pp} with VPP={model.virtual_pipeline_model_parallel_size}"
        if interleaved
        else f"PP={pp} without interleaving"
    )
    for knob, speaks, effective in (
        ("model.overlap_p2p_comm", P2P_DEFAULT, model.overlap_p2p_comm),
        ("model.batch_p2p_comm", P2P_DEFAULT, model.batch_p2p_comm),
        ("ddp.align_param_gather", ALIGN_DEFAULT, run.ddp.align_param_gather),
    ):
        yield speaks.decide(
            knob, requested=None, effective=effective, reason=layout, outcome=Outcome.DEFAULT
        )


def _tensor_parallel(c: Context) -> Iterator[Decision]:
    model = c.model
    size = model.tensor_model_parallel_size or 1
    if model.sequence_parallel and size == 1:
        model.sequence_parallel = False
        yield SEQUENCE_PARALLEL_OFF.decide(
            "model.sequence_parallel",
            requested=True,
            effective=False,
            reason="tensor_model_parallel_size is 1, so there is no group to split the sequence "
            "over",
            outcome=Outcome.REFUSED,
        )
    given = model.tp_comm_overlap_cfg
    wanted = _CommOverlapConfig(
        tp_comm_overlap=bool(model.tp_comm_overlap),
        tp_comm_overlap_cfg=given,
        tp_comm_bootstrap_backend=model.tp_comm_bootstrap_backend,
    )
    for decision in decide_tp(replace(c, request=wanted)):
        if decision.outcome is Outcome.REFUSED:
            yield _error(
                TP_OVERLAP_NEEDS,
                decision.knob,
                True,
                f"{decision.reason}: Megatron-LM stops at start",
            )
        elif decision.knob == "model.tp_comm_overlap_cfg" and isinstance(given, str):
            continue
        else:
            yield decision
    if model.tp_comm_overlap:
        yield from check_userbuffers(
            given, fp8=bool(model.fp8), also_bf16=bool(model.first_last_layers_bf16)
        )


def _buckets(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    number, knob = request.ddp_num_buckets, "ddp.bucket_size"
    if number is None:
        return
    if run.ddp.bucket_size is not None:
        yield _error(
            BUCKETS_ASKED,
            knob,
            run.ddp.bucket_size,
            f"--ddp-num-buckets {number} is given as well: Megatron-LM stops at start",
        )
        return
    if number < 1:
        yield _error(
            BUCKETS_ASKED,
            knob,
            run.ddp.bucket_size,
            f"--ddp-num-buckets {number}: Megatron-LM stops at start",
            "give --ddp-num-buckets 1 or more",
        )
        return
    try:
        chunks = bucketing(c.model, run.ddp, data_parallel_size=c.data_parallel_size or 1)
    except UncountableModel as cause:
        yield BUCKETS_ASKED.decide(
            knob,
            requested=None,
            effective=None,
            reason=f"--ddp-num-buckets {number}: how large a bucket is then is not known: {cause}",
            outcome=Outcome.NOTE,
        )
        return
    parameters = sum(chunk.parameters for chunk in chunks if chunk.pp_rank == 0)
    run.ddp.bucket_size = max(1, parameters // number)
    yield BUCKETS_ASKED.decide(
        knob,
        requested=None,
        effective=run.ddp.bucket_size,
        reason=f"{parameters:,} parameters on a rank of the first stage over --ddp-num-buckets "
        f"{number}",
        outcome=Outcome.NOTE,
    )


def _distributed_checkpoint(
    run: Any, request: MegatronLmRequest, told: list[Decision]
) -> Iterator[Decision]:
    knob = "optimizer.overlap_param_gather_with_optimizer_step"
    asked = getattr(run.optimizer, "overlap_param_gather_with_optimizer_step", False)
    if not asked or request.ckpt_format == "torch" or any(d.knob == knob for d in told):
        return
    yield _error(
        OPTIMIZER_STEP,
        knob,
        True,
        f"--ckpt-format is {request.ckpt_format}, a distributed checkpoint: Megatron-LM stops at "
        "start",
        "give --ckpt-format torch, or leave the flag out",
    )


_GIVE_PRESET = "give --tp-comm-overlap-cfg a YAML file with the settings of "


_REMEDIES = {
    "tp.userbuffers-default": "give --tp-comm-overlap-cfg a YAML file for your GPU, sizes and "
    "precision",
    "tp.preset-fit": "give --tp-comm-overlap-cfg a file for these sizes, or compare profiles with "
    "and without this one",
    "ub.split-dgrad-switch": "give --tp-comm-overlap-rs-dgrad",
    "ep.off-unless-asked": "give --overlap-moe-expert-parallel-comm",
    "ep.needs-expert-parallel": "give --expert-model-parallel-size above 1",
    "ep.needs-experts": "give --num-experts above 1",
    "ep.needs-dispatcher": "give --moe-token-dispatcher-type alltoall",
    "ep.needs-half-precision": "give --bf16",
    "ep.needs-virtual-pipeline": "give --num-virtual-stages-per-pipeline-rank",
    "ep.no-full-recompute": "leave --recompute-granularity full out, or make it selective",
    "ep.no-recompute-method": "leave --recompute-method out",
    "ep.no-recompute-layers": "leave --recompute-num-layers out",
    "ep.no-moe-recompute": "take moe out of --recompute-modules",
    "ep.no-shared-expert-overlap": "leave --moe-shared-expert-overlap out",
    "ep.one-mtp-layer": "leave --mtp-num-layers out, or make it 1 with PP > 1",
    "ep.delay-needs-ep-overlap": "give --overlap-moe-expert-parallel-comm as well",
    "ep.delay-graph-needs-fusion": "leave --no-gradient-accumulation-fusion out",
    "ep.delay-graph-no-attention-bias": "give --disable-bias-linear and leave --add-qkv-bias out",
    "core.bucket-ignored": "give --overlap-grad-reduce",
    "core.single-bucket": "give a --ddp-bucket-size well below the parameters per rank",
    "core.layout-sets-vpp": "",
    "core.p2p-warmup-flush": "leave --overlap-p2p-communication-warmup-flush out, or interleave "
    "the schedule",
    "core.defer-embedding-wgrad": "use pipeline parallelism, a --wgrad-deferral-limit that is not "
    "negative, and no --no-gradient-accumulation-fusion",
    "core.reuse-grad-buf-needs": "give --fp8-param-gather, or leave "
    "--reuse-grad-buf-for-mxfp8-param-ag out",
    "core.fp8-param-needs": "give --fp8-format, or leave --fp8-param-gather out",
    "core.expert-parallel-needs-experts": "give --num-experts, and an "
    "--expert-model-parallel-size that divides",
    "core.ep-overlap-needs": "leave --mtp-num-layers and the flags of CUDA graphs out",
    "core.delay-wgrad-needs": "give --overlap-moe-expert-parallel-comm, and no "
    "--moe-use-legacy-grouped-gemm",
    "core.shared-expert-overlap-needs": "give --moe-token-dispatcher-type alltoall, or leave "
    "--moe-shared-expert-overlap out",
}
"""By the id of the rule; empty where a command line has nothing to mend."""


def remedy_in_flags(rule_id: str, remedy: str) -> str | None:
    """How to get another outcome of a shared rule on Megatron-LM's command line.

    Args:
        rule_id: the rule that decided.
        remedy: what it says for a configuration of keys.
    """
    named = remedy.partition("set comm_overlap.tp_comm_overlap_cfg to ")[2]
    if named:
        return _GIVE_PRESET + named
    return _REMEDIES.get(rule_id, remedy) or None
