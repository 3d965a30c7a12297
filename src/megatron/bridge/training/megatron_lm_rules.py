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

from megatron.bridge.training.comm_overlap import InstalledSoftware
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, in_force, rule
from megatron.bridge.training.edits import Edit, either, in_words
from megatron.bridge.training.job_environment import UNKNOWN, JobEnvironment
from megatron.bridge.training.megatron_lm.buckets import bucket_checks
from megatron.bridge.training.megatron_lm.chunks import chunk_checks
from megatron.bridge.training.megatron_lm.fsdp import fsdp_checks
from megatron.bridge.training.megatron_lm.graphs import delay_checks, graph_checks
from megatron.bridge.training.megatron_lm.mended import DISTRIBUTED, distributed
from megatron.bridge.training.megatron_lm.optimizers import (
    gather_checks,
    optimizer_checks,
    replaced_knobs,
)
from megatron.bridge.training.megatron_lm.pipeline import pipeline_checks
from megatron.bridge.training.megatron_lm.predictions import prediction_checks
from megatron.bridge.training.megatron_lm.request import MegatronLmRequest as MegatronLmRequest
from megatron.bridge.training.megatron_lm.request import PassedFlag as PassedFlag
from megatron.bridge.training.megatron_lm.request import flags_of_other_versions, stops
from megatron.bridge.training.megatron_lm_remedies import otherwise_in_flags, remedy_in_flags
from megatron.bridge.training.remedies import parameters_not_in
from megatron.bridge.training.rules.buckets import BUCKET_DEFAULT
from megatron.bridge.training.rules.context import (
    Context,
    Gpu,
    Launcher,
    _CommOverlapConfig,
    fsdp_switch,
)
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
from megatron.bridge.training.rules.sizes.layers import CHUNKS_NEED_STAGES
from megatron.bridge.training.rules.tensor import decide_tp
from megatron.bridge.training.rules.wrong_numbers import APART_POSITIONS
from megatron.bridge.training.runtime_update import Update, data_parallel_size
from megatron.bridge.training.software import Software
from megatron.bridge.training.userbuffers.remedies import SETTINGS, SWITCH
from megatron.bridge.training.userbuffers.settings import check_userbuffers

SEQUENCE_PARALLEL_OFF = rule(
    "lm.sequence-parallel-off",
    Dimension.TP,
    claim="Megatron-LM switches --sequence-parallel off where --tensor-model-parallel-size is 1, "
    "with only a warning.",
    remedy="omit --sequence-parallel, or pass --tensor-model-parallel-size 2 or more",
    edits=(Edit("model.sequence_parallel", False),),
)
TP_OVERLAP_NEEDS = rule(
    "lm.tp-overlap-needs",
    Dimension.TP,
    claim="--tp-comm-overlap without sequence parallelism in effect, or without Transformer "
    "Engine, stops a Megatron-LM job at start (Megatron-Bridge switches the overlap off).",
    remedy="pass --sequence-parallel with --tensor-model-parallel-size above 1, or omit "
    "--tp-comm-overlap",
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
    edits=DISTRIBUTED,
)
AS_FLAGS_SAY = rule(
    "lm.as-flags-say",
    Dimension.ANY,
    claim="Every other knob has the value of its flag: all overlap is off by default.",
    opt_in=True,
)

_DECIDED_OTHERWISE = frozenset(
    {
        PARAM_GATHER_NEEDS.id,
        OPTIMIZER_STEP_NEEDS.id,
        BUCKET_DEFAULT.id,
        CHUNKS_NEED_STAGES.id,
        APART_POSITIONS.id,
    }
)
"""Rules by which Megatron-Core continues, and which Megatron-LM decides before."""
_BRIDGES = ("bridge.", "ep.delay-")
"""Checks of Megatron-Bridge's own, around the same Megatron-Core."""

_NO_TP_OVERLAP = (Edit("model.tp_comm_overlap", False),)
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
        batch=getattr(run, "train", None),
        backend=request.distributed_backend,
        gpu=gpu,
        launcher=launcher,
        optimizer=run.optimizer,
    )
    decisions = [
        *flags_of_other_versions(flags, context.stack, version_known=version_known),
        *chunk_checks(context, request),
        *pipeline_checks(context, run),
        *gather_checks(context, run, request),
        *fsdp_checks(context, run, request),
        *_precision(context, run, request),
        *_tensor_parallel(context),
        *optimizer_checks(context, run, request),
        *graph_checks(context, request),
        *bucket_checks(context, run, request),
        *prediction_checks(context),
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
    changes = in_words(decision.edits)
    if decision.edits and decision.remedy.startswith(changes):
        # The rest of the remedy may name keys that Megatron-LM does not have.
        rest = decision.remedy.removeprefix(changes)
        if rest and not rest.startswith(", or "):
            # It says where or when to make the changes, and is no alternative to them.
            return decision
        otherwise = otherwise_in_flags(decision.rule, rest.removeprefix(", or "))
        return replace(decision, remedy=either(decision.edits, otherwise))
    return replace(decision, remedy=remedy_in_flags(decision.rule, decision.remedy))


def _fp8_gather_mended(c: Context) -> tuple[Edit, ...]:
    """What the gather needs; it is omitted where that would train on wrong numbers."""
    edits = distributed(c)
    return edits if len(edits) == len(DISTRIBUTED) else parameters_not_in(c, "fp8")


def _precision(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
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
            remedy=None if refused or not effective else GRADS_IN_FP32.remedy,
            edits=(Edit("megatron_lm.grad_reduce_in_bf16", False),) if refused else (),
        )
    distributed = bool(run.ddp.use_distributed_optimizer)
    if run.ddp.fp8_param_gather and not distributed and fsdp_switch(run.ddp) is None:
        edits = _fp8_gather_mended(c)
        yield FP8_GATHER.error(
            "ddp.fp8_param_gather",
            True,
            stops("neither --use-distributed-optimizer nor FSDP is on"),
            either(edits, "omit --fp8-param-gather") if len(edits) == len(DISTRIBUTED) else None,
            edits,
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
            fits = size > 1 and c.software.is_te_min_version("0.0")
            edits = (Edit("model.sequence_parallel", True),) if fits else _NO_TP_OVERLAP
            yield TP_OVERLAP_NEEDS.error(
                decision.knob,
                True,
                stops(decision.reason),
                either(edits, "omit --tp-comm-overlap" if fits else ""),
                edits,
            )
        elif decision.knob == "model.tp_comm_overlap_cfg" and isinstance(given, str):
            continue
        else:
            yield decision
    if model.tp_comm_overlap:
        for decision in check_userbuffers(
            given,
            fp8=bool(model.fp8),
            also_bf16=bool(model.first_last_layers_bf16),
            rs_dgrad=bool(c.of_model("tp_comm_overlap_rs_dgrad")),
        ):
            yield decision if _is_switch(decision) else _in_the_file(decision)


def _is_switch(decision: Decision) -> bool:
    return bool(decision.edits) and all(edit.key == SWITCH for edit in decision.edits)


def _in_the_file(decision: Decision) -> Decision:
    """A decision about userbuffers settings, which are in a file that a flag names."""
    if decision.remedy is None:
        return decision
    said = decision.remedy.replace(f"{SETTINGS}.", "").replace(SETTINGS, "the settings")
    return replace(decision, edits=(), remedy=f"in the file of --tp-comm-overlap-cfg, {said}")
