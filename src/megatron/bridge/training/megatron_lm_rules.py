"""What Megatron-LM's argument checks do with a command line, where Megatron-Bridge differs.

Megatron-LM has no comm_overlap: every knob is a flag. A few are on by default with an interleaved
pipeline, and some combinations that Megatron-Bridge switches off or accepts stop the job at start.
Facts of Megatron-LM's main branch, August 2026 (megatron/training/arguments.py). What Megatron-Core
does with the result is the same for both: see `rules.megatron_core`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron.bridge.models.parameter_count import UncountableModel
from megatron.bridge.training.bucketing import (
    AT_WRAP,
    CORE_LEAST,
    CORE_PER_RANK,
    bucketing,
    default_bucket_size,
)
from megatron.bridge.training.comm_overlap import InstalledSoftware
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, in_force, rule
from megatron.bridge.training.job_environment import UNKNOWN, JobEnvironment
from megatron.bridge.training.megatron_lm.fsdp import fsdp_checks
from megatron.bridge.training.megatron_lm.graphs import delay_checks, graph_checks
from megatron.bridge.training.megatron_lm.optimizers import (
    gather_checks,
    optimizer_checks,
    replaced_knobs,
)
from megatron.bridge.training.megatron_lm.request import MegatronLmRequest as MegatronLmRequest
from megatron.bridge.training.megatron_lm.request import PassedFlag as PassedFlag
from megatron.bridge.training.megatron_lm.request import flags_of_other_versions
from megatron.bridge.training.megatron_lm_remedies import remedy_in_flags
from megatron.bridge.training.rules.buckets import BUCKET_DEFAULT
from megatron.bridge.training.rules.context import (
    Context,
    Gpu,
    Launcher,
    _CommOverlapConfig,
    fsdp_switch,
)
from megatron.bridge.training.rules.core_pipeline import layout_sets_vpp
from megatron.bridge.training.rules.environment import (
    LM_GRAPHS_EXPANDABLE,
    graphs_with_expandable_segments,
)
from megatron.bridge.training.rules.megatron_core import (
    OPTIMIZER_STEP_NEEDS,
    PARAM_GATHER_NEEDS,
    as_written,
    core_consequences,
)
from megatron.bridge.training.rules.tensor import decide_tp
from megatron.bridge.training.runtime_update import Update, data_parallel_size
from megatron.bridge.training.software import Software
from megatron.bridge.training.userbuffers.settings import check_userbuffers

SEQUENCE_PARALLEL_OFF = rule(
    "lm.sequence-parallel-off",
    Dimension.TP,
    claim="Megatron-LM switches --sequence-parallel off where --tensor-model-parallel-size is 1, "
    "with only a warning.",
    remedy="pass --tensor-model-parallel-size 2 or more, or omit --sequence-parallel",
)
TP_OVERLAP_NEEDS = rule(
    "lm.tp-overlap-needs",
    Dimension.TP,
    claim="--tp-comm-overlap without sequence parallelism in effect, or without Transformer "
    "Engine, stops a Megatron-LM job at start (Megatron-Bridge switches the overlap off).",
    remedy="pass --sequence-parallel with --tensor-model-parallel-size above 1, or omit "
    "--tp-comm-overlap",
)
ONE_CHUNK = rule(
    "lm.one-chunk-no-interleaving",
    Dimension.PP,
    claim="With one chunk per stage, Megatron-LM uses no virtual pipeline: the schedule is not "
    "interleaved.",
    remedy="pass a smaller --num-layers-per-virtual-pipeline-stage, or "
    "--num-virtual-stages-per-pipeline-rank above 1",
)
INTERLEAVING_NEEDS_STAGES = rule(
    "lm.interleaving-needs-stages",
    Dimension.PP,
    claim="Megatron-LM refuses an interleaved schedule with one pipeline stage. With p2p overlap "
    "off it also refuses two stages, because the previous and the next stage are then the same "
    "peer and their batched messages would be swapped.",
    remedy="omit --no-overlap-p2p-communication, or use more pipeline stages",
)
P2P_DEFAULT = rule(
    "lm.p2p-overlap",
    Dimension.PP,
    claim="overlap_p2p_comm is on by default with an interleaved schedule "
    "(--no-overlap-p2p-communication turns it off) and always off without one; batch_p2p_comm is "
    "its opposite.",
    remedy="pass --num-virtual-stages-per-pipeline-rank above 1",
)
ALIGN_DEFAULT = rule(
    "lm.align-param-gather",
    Dimension.DP,
    claim="align_param_gather is on by default with an interleaved schedule "
    "(--no-align-param-gather turns it off) and always off without one.",
)
GRADS_IN_FP32 = rule(
    "lm.grads-in-fp32",
    Dimension.PRECISION,
    claim="With --bf16 and fp32 main gradients, gradients are accumulated and reduced in fp32, "
    "with or without --accumulate-allreduce-grads-in-fp32, unless --grad-reduce-in-bf16 is passed.",
    remedy="pass --grad-reduce-in-bf16 to reduce half the bytes",
)
FP8_GATHER = rule(
    "lm.fp8-param-gather-needs",
    Dimension.PRECISION,
    claim="--fp8-param-gather without --use-distributed-optimizer or FSDP stops a Megatron-LM "
    "job at start.",
    remedy="pass --use-distributed-optimizer, or omit --fp8-param-gather",
)
BUCKETS_ASKED = rule(
    "lm.bucket-number",
    Dimension.DP,
    claim="--ddp-num-buckets N, with N of 1 or more, sets the bucket size to a rank's parameters "
    "divided by N. --ddp-bucket-size and --ddp-num-buckets exclude each other.",
    remedy="pass only one of --ddp-bucket-size and --ddp-num-buckets",
)
BUCKET_SIZE = rule(
    "lm.bucket-default",
    Dimension.DP,
    claim=f"Without --ddp-bucket-size, Megatron-LM's trainer takes max({CORE_LEAST:,}, "
    f"{CORE_PER_RANK:,} x DP x CP) parameters for a bucket.",
    source="Megatron-LM's training.py",
)
AS_FLAGS_SAY = rule(
    "lm.as-flags-say",
    Dimension.ANY,
    claim="Every other knob has the value of its flag: all overlap is off by default.",
    opt_in=True,
)

_DECIDED_OTHERWISE = frozenset({PARAM_GATHER_NEEDS.id, OPTIMIZER_STEP_NEEDS.id, BUCKET_DEFAULT.id})
"""Rules by which Megatron-Core continues, and which Megatron-LM decides before."""
_BRIDGES = ("bridge.", "ep.delay-")
"""Checks of Megatron-Bridge's own, around the same Megatron-Core."""

_DECIDED_HERE = frozenset(
    {
        "model.tp_comm_overlap",
        "model.overlap_p2p_comm",
        "model.batch_p2p_comm",
        "ddp.align_param_gather",
    }
)


def update_megatron_lm(
    run: Any,
    request: MegatronLmRequest,
    world_size: int,
    *,
    software: Software | None = None,
    environment: JobEnvironment = UNKNOWN,
    gpu: Gpu | None = None,
    launcher: Launcher | None = None,
    flags: tuple[PassedFlag, ...] = (),
    version_known: bool = False,
) -> Update:
    """Make a Megatron-LM run's configurations effective, in place, as its argument checks do.

    Args:
        run: its model, optimizer and ddp, with the values of the flags, and with Megatron-LM's own
            defaults (overlap_p2p_comm and align_param_gather on) where a flag is not passed.
        request: the flags without a field there.
        world_size: number of ranks (GPUs) of the job.
        software: what is installed; looked up by default.
        environment: what is known of the job's environment.
        gpu: the job's GPU, where it is known.
        launcher: how the job is started, where that is known.
        flags: those that some versions of Megatron-LM do not know.
        version_known: whether the version of the software is certainly the run's.

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
        environment=environment,
        train=request,
        gpu=gpu,
        launcher=launcher,
    )
    decisions = [
        *flags_of_other_versions(flags, context.stack, version_known=version_known),
        *_pipeline(run),
        *gather_checks(context, run, request),
        *fsdp_checks(context, run, request),
        *_precision(run, request),
        *_tensor_parallel(context),
        *optimizer_checks(context, run, request),
        *graph_checks(context, request),
        *_buckets(context, run, request),
    ]
    delayed = list(delay_checks(context))
    decisions += delayed
    decisions += [
        d
        for d in as_written(context, AS_FLAGS_SAY, "Megatron-LM uses the value of its flag")
        if d.knob not in _DECIDED_HERE and not d.rule.startswith(_BRIDGES)
    ]
    for decision in in_force(core_consequences(context, run.optimizer), context.stack):
        if not (decision.rule in _DECIDED_OTHERWISE or decision.rule.startswith(_BRIDGES)):
            decisions.append(decision)
    decisions += graphs_with_expandable_segments(context, LM_GRAPHS_EXPANDABLE)
    decisions = [_with_remedy_in_flags(d) for d in decisions]
    return Update(dp_size, decisions, environment, replaced_knobs(decisions))


def _with_remedy_in_flags(decision: Decision) -> Decision:
    if decision.rule.startswith("lm.") or decision.remedy is None:
        return decision
    return replace(decision, remedy=remedy_in_flags(decision.rule, decision.remedy))


def _precision(run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    knob = "ddp.grad_reduce_in_fp32"
    given = bool(run.ddp.grad_reduce_in_fp32)
    if run.model.bf16:
        if request.grad_reduce_in_bf16:
            run.ddp.grad_reduce_in_fp32 = False
            reason = "--grad-reduce-in-bf16 is passed"
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
            remedy="omit --grad-reduce-in-bf16" if refused else GRADS_IN_FP32.remedy,
        )
    distributed = bool(run.ddp.use_distributed_optimizer)
    if run.ddp.fp8_param_gather and not distributed and fsdp_switch(run.ddp) is None:
        yield FP8_GATHER.error(
            "ddp.fp8_param_gather",
            True,
            "neither --use-distributed-optimizer nor FSDP is on: Megatron-LM stops at start",
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
            reason="its layers make one chunk per stage",
            outcome=Outcome.REFUSED,
        )
    yield from layout_sets_vpp(model)
    interleaved = (model.virtual_pipeline_model_parallel_size or 1) > 1
    requested = bool(model.overlap_p2p_comm)
    if interleaved and (pp < 2 or (pp == 2 and not requested)):
        off = "" if pp < 2 else " and --no-overlap-p2p-communication"
        yield INTERLEAVING_NEEDS_STAGES.error(
            "model.virtual_pipeline_model_parallel_size",
            model.virtual_pipeline_model_parallel_size,
            f"PP={pp} with VPP={model.virtual_pipeline_model_parallel_size}{off}: Megatron-LM "
            "stops at start",
            "pass --pipeline-model-parallel-size above 1" if pp < 2 else None,
        )
    model.overlap_p2p_comm = requested and interleaved
    model.batch_p2p_comm = not model.overlap_p2p_comm
    run.ddp.align_param_gather = bool(run.ddp.align_param_gather) and interleaved
    layout = (
        f"PP={pp} with VPP={model.virtual_pipeline_model_parallel_size}"
        if interleaved
        else f"PP={pp} without interleaving"
    )
    for knob, decided_by, effective in (
        ("model.overlap_p2p_comm", P2P_DEFAULT, model.overlap_p2p_comm),
        ("model.batch_p2p_comm", P2P_DEFAULT, model.batch_p2p_comm),
        ("ddp.align_param_gather", ALIGN_DEFAULT, run.ddp.align_param_gather),
    ):
        yield decided_by.decide(
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
            yield TP_OVERLAP_NEEDS.error(
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
        yield from _default_bucket_size(c)
        return
    if run.ddp.bucket_size is not None:
        yield BUCKETS_ASKED.error(
            knob,
            run.ddp.bucket_size,
            f"--ddp-num-buckets {number} is passed too: Megatron-LM stops at start",
        )
        return
    if number < 1:
        yield BUCKETS_ASKED.error(
            knob,
            run.ddp.bucket_size,
            f"--ddp-num-buckets {number}: Megatron-LM stops at start",
            "pass --ddp-num-buckets 1 or more",
        )
        return
    try:
        chunks = bucketing(c.model, run.ddp, data_parallel_size=c.data_parallel_size or 1)
    except UncountableModel as cause:
        yield BUCKETS_ASKED.decide(
            knob,
            requested=None,
            effective=None,
            reason=f"--ddp-num-buckets {number}: the size of a bucket is not known: {cause}",
            outcome=Outcome.NOTE,
        )
        return
    parameters = sum(chunk.parameters for chunk in chunks if chunk.pp_rank == 0)
    run.ddp.bucket_size = max(1, parameters // number)
    yield BUCKETS_ASKED.decide(
        knob,
        requested=None,
        effective=run.ddp.bucket_size,
        reason=f"{parameters:,} parameters on a rank of the first stage, divided by "
        f"--ddp-num-buckets {number}",
        outcome=Outcome.NOTE,
    )


def _default_bucket_size(c: Context) -> Iterator[Decision]:
    """What stands for None in Megatron-LM's trainer; kept on ddp for bucketing."""
    ddp = c.ddp
    if ddp.bucket_size is not None or not ddp.overlap_grad_reduce or fsdp_switch(ddp) is not None:
        return
    if c.replicas == 1:
        return
    dp, cp = c.data_parallel_size or 1, c.of_model("context_parallel_size") or 1
    size = default_bucket_size(c.replicas)
    setattr(ddp, AT_WRAP, size)
    yield BUCKET_SIZE.decide(
        "ddp.bucket_size",
        requested=None,
        effective=size,
        reason=f"without --ddp-bucket-size Megatron-LM takes max({CORE_LEAST:,}, "
        f"{CORE_PER_RANK:,} x {dp * cp}) parameters, where DP x CP is {dp} x {cp}",
        outcome=Outcome.NOTE,
    )
