"""What stops a job in its data-parallel settings: buckets, gathers, optimizers, NCCL buffers."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.remedies import (
    DISTRIBUTED,
    WITH_STEP,
    Edits,
    off,
    parameters_not_in,
    reused_buffer,
)
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.refusal import Refusal
from megatron.bridge.training.rules.wrong_numbers import WRONG_INSTANCES, wrong_numbers
from megatron.bridge.training.versions import Range


def _mxfp8_gather(c: Context) -> bool:
    return bool(c.of_ddp("fp8_param_gather")) and c.of_model("fp8_recipe") == "mxfp8"


def _instances(c: Context) -> int:
    return c.of_ddp("num_distributed_optimizer_instances") or 1


_ONE_INSTANCE = (Edit("ddp.num_distributed_optimizer_instances", 1),)


def _reusing(c: Context) -> Edits:
    """The gather through the gradient buffer, unless this run's version has a bug with it."""
    ddp = copy(c.ddp)
    ddp.reuse_grad_buf_for_mxfp8_param_ag = True
    if any(d.outcome is Outcome.WRONG_NUMBERS for d in wrong_numbers(replace(c, ddp=ddp))):
        return parameters_not_in(c, "fp8")
    return reused_buffer(c, on=True)


def _distributed(c: Context) -> Edits:
    """The distributed optimizer, unless this run's version has a bug with several instances, or the
    layer-wise one takes its place."""
    # Megatron-LM turns it off again where layers are frozen.
    replaced = c.of_optimizer("use_layer_wise_distributed_optimizer")
    if WRONG_INSTANCES.holds(c.stack) or replaced or getattr(c.train, "freeze_all_layers", False):
        return _ONE_INSTANCE
    return (Edit(DISTRIBUTED, True),)


STEP_CHECKPOINT = rule(
    "bridge.optimizer-step-checkpoint",
    Dimension.DP,
    claim="overlap_param_gather_with_optimizer_step has problems with checkpoints: Megatron-LM "
    "refuses it with a distributed checkpoint format, and Megatron-Bridge, which checks nothing, "
    "took it out of its performance recipes for that.",
    remedy="set overlap_param_gather_with_optimizer_step=false for a run that saves checkpoints",
    source="Megatron-LM's arguments.py; Megatron-Bridge pull request 5847",
)


def step_consequences(c: Context) -> Iterator[Decision]:
    """What the gather with the optimizer step does to checkpoints."""
    on = c.of_optimizer("overlap_param_gather_with_optimizer_step")
    if not on or not c.of_ddp("overlap_param_gather") or c.fsdp is not None:
        return
    save = getattr(c.train, "save", None)
    edits = (Edit(c.key(WITH_STEP), False),)
    yield STEP_CHECKPOINT.decide(
        WITH_STEP,
        requested=None,
        effective=True,
        reason=("checkpoint.save is set, and " if save else "")
        + "a checkpoint of a distributed format may not be loaded again: Megatron-LM refuses the "
        "two together, and Megatron-Bridge does not check it",
        outcome=Outcome.NOTE,
        remedy=in_words(edits) + " for a run that saves checkpoints",
        edits=edits,
    )


DATA_PARALLEL_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "core.num-buckets-excludes",
            Dimension.DP,
            claim="ddp.num_buckets is refused together with a bucket_size, which comm_overlap sets "
            "wherever the data-parallel size is above 1.",
            remedy="set ddp.num_buckets=null, or use num_buckets without a comm_overlap section",
            edits=(Edit("ddp.num_buckets", None),),
            versions=(Range("core", since="0.18.2"),),
            source="Megatron-LM 0dc36dfc6f",
        ),
        "ddp.num_buckets",
        lambda c: (
            f"bucket_size is {c.of_ddp('bucket_size')}"
            if c.of_ddp("num_buckets") is not None and c.of_ddp("bucket_size") is not None
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.mxfp8-gather-needs-reuse",
            Dimension.PRECISION,
            claim="fp8_param_gather with the mxfp8 recipe needs reuse_grad_buf_for_mxfp8_param_ag.",
            remedy="set mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=true, or "
            "fp8_param_gather=false",
            source="Megatron-Bridge 6e39e973b",
        ),
        "ddp.fp8_param_gather",
        lambda c: (
            "ddp.reuse_grad_buf_for_mxfp8_param_ag is off"
            if _mxfp8_gather(c)
            and not c.of_ddp("reuse_grad_buf_for_mxfp8_param_ag")
            and c.fsdp is None
            else ""
        ),
        _reusing,
    ),
    Refusal(
        rule(
            "core.mxfp8-reuse-excludes-step",
            Dimension.PRECISION,
            claim="reuse_grad_buf_for_mxfp8_param_ag is refused together with "
            "overlap_param_gather_with_optimizer_step.",
            remedy="set overlap_param_gather_with_optimizer_step=false",
            versions=(Range("core", since="0.19.0"),),
            source="Megatron-LM 0552f29307",
        ),
        "optimizer.overlap_param_gather_with_optimizer_step",
        lambda c: (
            "reuse_grad_buf_for_mxfp8_param_ag is on"
            if c.of_optimizer("overlap_param_gather_with_optimizer_step")
            and c.of_ddp("reuse_grad_buf_for_mxfp8_param_ag")
            else ""
        ),
        off(WITH_STEP),
    ),
    Refusal(
        rule(
            "core.optimizer-instances-need",
            Dimension.DP,
            claim="num_distributed_optimizer_instances above 1 needs the distributed optimizer.",
            remedy="set ddp.use_distributed_optimizer=true, or "
            "num_distributed_optimizer_instances=1",
        ),
        "ddp.num_distributed_optimizer_instances",
        lambda c: (
            "ddp.use_distributed_optimizer is off"
            if _instances(c) > 1 and not c.of_ddp("use_distributed_optimizer")
            else ""
        ),
        _distributed,
    ),
    Refusal(
        rule(
            "core.optimizer-instances-exclude",
            Dimension.DP,
            claim="num_distributed_optimizer_instances above 1 is refused with "
            "reduce_scatter_with_fp32_accumulation.",
            remedy="set ddp.reduce_scatter_with_fp32_accumulation=false",
            edits=(Edit("ddp.reduce_scatter_with_fp32_accumulation", False),),
            source="Megatron-LM megatron/core/distributed/param_and_grad_buffer.py",
        ),
        "ddp.num_distributed_optimizer_instances",
        lambda c: (
            "reduce_scatter_with_fp32_accumulation is on"
            if _instances(c) > 1 and c.of_ddp("reduce_scatter_with_fp32_accumulation")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.layer-wise-excludes-step",
            Dimension.DP,
            claim="The layer-wise distributed optimizer is refused with "
            "overlap_param_gather_with_optimizer_step.",
            remedy="set overlap_param_gather_with_optimizer_step=false",
            versions=(Range("core", since="0.18.2"),),
            source="Megatron-LM 5b512b45d1",
        ),
        "optimizer.overlap_param_gather_with_optimizer_step",
        lambda c: (
            "use_layer_wise_distributed_optimizer is on"
            if c.of_optimizer("use_layer_wise_distributed_optimizer")
            and c.of_optimizer("overlap_param_gather_with_optimizer_step")
            else ""
        ),
        off(WITH_STEP),
    ),
    Refusal(
        rule(
            "core.layer-wise-one-instance",
            Dimension.DP,
            claim="The layer-wise distributed optimizer is refused with more than one instance, "
            "where its layout of parameters is layer-wise.",
            remedy="set ddp.num_distributed_optimizer_instances=1",
            edits=_ONE_INSTANCE,
            versions=(Range("core", since="0.18.2"),),
            source="Megatron-LM 0044db1f20",
        ),
        "ddp.num_distributed_optimizer_instances",
        lambda c: (
            f"use_layer_wise_distributed_optimizer is on with {_instances(c)} instances"
            if c.of_optimizer("use_layer_wise_distributed_optimizer") and _instances(c) > 1
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.fp32-local-accumulation",
            Dimension.DP,
            claim="param_name_patterns_for_fp32_local_accumulation is refused with "
            "grad_reduce_in_fp32, which accumulates every gradient in fp32.",
            remedy="set ddp.param_name_patterns_for_fp32_local_accumulation=[]",
            edits=(Edit("ddp.param_name_patterns_for_fp32_local_accumulation", []),),
            versions=(Range("core", since="0.17.1"),),
            source="Megatron-LM megatron/core/distributed/distributed_data_parallel_config.py",
        ),
        "ddp.param_name_patterns_for_fp32_local_accumulation",
        lambda c: (
            "grad_reduce_in_fp32 is on"
            if c.of_ddp("param_name_patterns_for_fp32_local_accumulation")
            and c.of_ddp("grad_reduce_in_fp32")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.weight-shards-average",
            Dimension.DP,
            claim="average_in_collective is refused with tensor_parallel_num_weight_shards above "
            "1, which divides the weights once more and gathers them layer by layer.",
            remedy="set ddp.average_in_collective=false",
            edits=(Edit("ddp.average_in_collective", False),),
            versions=(Range("core", since="0.19.0"),),
            source="Megatron-LM c5ff22b7f1",
        ),
        "ddp.average_in_collective",
        lambda c: (
            f"tensor_parallel_num_weight_shards is {shards}"
            if (shards := c.of_model("tensor_parallel_num_weight_shards") or 1) > 1
            and c.of_ddp("average_in_collective")
            else ""
        ),
    ),
)
"""In the order in which they are reported."""
