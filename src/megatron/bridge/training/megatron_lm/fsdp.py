"""Megatron-LM's checks of its two fully sharded data-parallel paths, by version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.megatron_lm.mended import (
    FP8_GATHER_OFF,
    NOT_DISTRIBUTED,
    STEP_OFF,
    TORCH_FSDP2,
    not_distributed,
    one_instance,
    together,
    without_fsdp,
)
from megatron.bridge.training.megatron_lm.request import MegatronLmRequest, stops
from megatron.bridge.training.rules.context import Context, fsdp_switch
from megatron.bridge.training.versions import Range

TORCH_FSDP2_NEEDS = rule(
    "lm.torch-fsdp2-needs",
    Dimension.DP,
    claim="--use-torch-fsdp2 stops a Megatron-LM job at start with pipeline or expert parallelism, "
    "the distributed optimizer, gradient accumulation fusion (on by default), --fp16, tied "
    "embeddings, or a --ckpt-format other than torch_dist and torch_dcp.",
    remedy="pass --no-gradient-accumulation-fusion and --untie-embeddings-and-output-weights, and "
    "omit the rest; with pipeline or expert parallelism, omit --use-torch-fsdp2",
)
TORCH_FSDP2_GATHER = rule(
    "lm.torch-fsdp2-fp8-gather",
    Dimension.PRECISION,
    claim="With --use-torch-fsdp2 and Transformer Engine 2.0 or newer, --fp8-param-gather is "
    "turned off with only a warning: parameters are gathered in bf16.",
    remedy="omit --fp8-param-gather, or use --use-megatron-fsdp",
    edits=FP8_GATHER_OFF,
)
CHECKPOINT = rule(
    "lm.fsdp-checkpoint",
    Dimension.DP,
    claim="--use-megatron-fsdp stops a Megatron-LM job at start with a --ckpt-format other than "
    "fsdp_dtensor (the default is another one).",
    remedy="pass --ckpt-format fsdp_dtensor",
    edits=(Edit("megatron_lm.ckpt_format", "fsdp_dtensor"),),
)
REGISTRATION = rule(
    "lm.fsdp-registration-needs",
    Dimension.DP,
    claim="--fsdp-manual-registration stops a Megatron-LM job at start without --use-megatron-fsdp "
    "and --use-nccl-ub.",
    remedy="omit the flag, or pass --use-megatron-fsdp and --use-nccl-ub",
    edits=(Edit("ddp.fsdp_manual_registration", False),),
)
TURNS_ON = rule(
    "lm.fsdp-distributed-optimizer",
    Dimension.DP,
    claim="--use-megatron-fsdp turns the distributed optimizer on and "
    "reuse_grad_buf_for_mxfp8_param_ag off.",
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM's arguments.py",
)
OPTIMIZER = rule(
    "lm.fsdp-optimizer",
    Dimension.DP,
    claim="--use-megatron-fsdp stops a Megatron-LM job at start with an --optimizer other than "
    "adam and sgd.",
    remedy="omit --use-megatron-fsdp, or pass --optimizer adam",
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM's arguments.py",
)
USER_BUFFERS = rule(
    "lm.fsdp-nccl-ub",
    Dimension.DP,
    claim="--use-megatron-fsdp with --use-nccl-ub turns --fsdp-manual-registration on.",
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM's arguments.py",
)
DOUBLE_BUFFER = rule(
    "lm.fsdp-double-buffer",
    Dimension.DP,
    claim="--use-megatron-fsdp with --use-nccl-ub or --megatron-fsdp-max-pool-double-buffer turns "
    "--fsdp-double-buffer on.",
    versions=(Range("core", since="0.19.0"),),
    source="Megatron-LM's arguments.py",
)
SECOND_VERSION = rule(
    "lm.fsdp-version-2",
    Dimension.DP,
    claim="--megatron-fsdp-version 2 stops a Megatron-LM job at start with "
    "--use-distributed-optimizer.",
    remedy="omit --use-distributed-optimizer",
    edits=NOT_DISTRIBUTED,
    versions=(Range("core", since="0.20.0"),),
    source="Megatron-LM 313f6e95db",
)


def fsdp_checks(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    """What the parser does with an FSDP's flags; it changes some, in place."""
    switch = fsdp_switch(run.ddp)
    if switch == TORCH_FSDP2:
        yield from _torch_fsdp2(c, run, request)
    elif switch is not None:
        yield from _megatron_fsdp(c, run, request)
    if getattr(run.ddp, "fsdp_manual_registration", False):
        megatrons = switch not in (None, TORCH_FSDP2)
        if not (megatrons and getattr(run.ddp, "nccl_ub", False)):
            missing = "--use-nccl-ub" if megatrons else "--use-megatron-fsdp"
            yield REGISTRATION.error(
                "ddp.fsdp_manual_registration", True, stops(f"{missing} is not passed")
            )


def _torch_fsdp2(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    model = run.model
    refused = {
        f"PP={c.pipeline_size}": c.pipeline_size > 1,
        f"EP={model.expert_model_parallel_size}": (model.expert_model_parallel_size or 1) > 1,
        "--use-distributed-optimizer": bool(run.ddp.use_distributed_optimizer),
        "gradient accumulation fusion": bool(model.gradient_accumulation_fusion),
        f"--ckpt-format {request.ckpt_format}": request.ckpt_format
        not in ("torch_dist", "torch_dcp"),
        "tied embeddings": bool(c.of_model("share_embeddings_and_output_weights", True)),
        "--fp16": bool(model.fp16),
    }
    found = [what for what, is_on in refused.items() if is_on]
    if found:
        yield TORCH_FSDP2_NEEDS.error(
            "ddp.use_torch_fsdp2",
            True,
            stops(f"--use-torch-fsdp2 with {', '.join(found)}"),
            None,
            _torch_fsdp2_mended(c, request),
        )
    if run.ddp.fp8_param_gather and c.software.is_te_min_version("2.0.0"):
        run.ddp.fp8_param_gather = model.fp8_param = False
        yield TORCH_FSDP2_GATHER.decide(
            "ddp.fp8_param_gather",
            requested=True,
            effective=False,
            reason="--use-torch-fsdp2 with Transformer Engine 2.0 or newer: parameters are "
            "gathered in bf16",
            outcome=Outcome.REFUSED,
        )


def _torch_fsdp2_mended(c: Context, request: MegatronLmRequest) -> tuple[Edit, ...]:
    """What to change for Torch's FSDP2; where layers or experts are divided, it is omitted."""
    model, ddp = c.model, c.ddp
    if c.pipeline_size > 1 or (model.expert_model_parallel_size or 1) > 1:
        return without_fsdp(c)
    edits: tuple[Edit, ...] = ()
    if ddp.use_distributed_optimizer:
        edits = not_distributed(c)
    if model.gradient_accumulation_fusion:
        edits += (Edit("model.gradient_accumulation_fusion", False),)
    if request.ckpt_format not in ("torch_dist", "torch_dcp"):
        edits += (Edit("megatron_lm.ckpt_format", "torch_dist"),)
    if c.of_model("share_embeddings_and_output_weights", True):
        edits += (Edit("model.share_embeddings_and_output_weights", False),)
    if model.fp16:
        edits += tuple(
            Edit(f"{section}.{name}", name == "bf16")
            for section in ("model", "optimizer")
            for name in ("fp16", "bf16")
        )
    return edits


def _megatron_fsdp(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    ddp, optimizer = run.ddp, run.optimizer
    omitted = without_fsdp(c)
    if request.ckpt_format != "fsdp_dtensor":
        yield CHECKPOINT.error(
            f"ddp.{fsdp_switch(ddp)}", True, stops(f"--ckpt-format is {request.ckpt_format}")
        )
    second = getattr(ddp, "megatron_fsdp_version", 1) == 2 and SECOND_VERSION.holds(c.stack)
    if second and ddp.use_distributed_optimizer:
        yield SECOND_VERSION.error(
            "ddp.megatron_fsdp_version",
            2,
            stops("--use-distributed-optimizer is passed"),
            None,
            together(
                NOT_DISTRIBUTED,
                STEP_OFF if c.of_optimizer("overlap_param_gather_with_optimizer_step") else (),
                one_instance(c),
            ),
        )
    if TURNS_ON.holds(c.stack) and not second:
        if not ddp.use_distributed_optimizer:
            ddp.use_distributed_optimizer = optimizer.use_distributed_optimizer = True
            yield _turned("use_distributed_optimizer", effective=True)
        if getattr(ddp, "reuse_grad_buf_for_mxfp8_param_ag", False):
            ddp.reuse_grad_buf_for_mxfp8_param_ag = False
            optimizer.reuse_grad_buf_for_mxfp8_param_ag = False
            yield _turned("reuse_grad_buf_for_mxfp8_param_ag", effective=False)
    name = getattr(optimizer, "optimizer", "adam") or "adam"
    if OPTIMIZER.holds(c.stack) and name not in ("adam", "sgd"):
        yield OPTIMIZER.error(
            "optimizer.optimizer",
            name,
            stops("--use-megatron-fsdp is passed"),
            either(omitted, "pass --optimizer adam"),
            omitted,
        )
    yield from _buffers(c, ddp)


def _turned(knob: str, *, effective: bool) -> Decision:
    return TURNS_ON.decide(
        f"ddp.{knob}",
        requested=None,
        effective=effective,
        reason=f"--use-megatron-fsdp turns it {'on' if effective else 'off'}",
        outcome=Outcome.NOTE,
    )


def _buffers(c: Context, ddp: Any) -> Iterator[Decision]:
    """The buffers that Megatron-FSDP registers or doubles."""
    reasons = {
        "--use-nccl-ub is passed": getattr(ddp, "nccl_ub", False),
        "--megatron-fsdp-max-pool-double-buffer is passed": getattr(
            ddp, "megatron_fsdp_max_pool_double_buffer", False
        ),
    }
    reason = next((why for why, is_on in reasons.items() if is_on), None)
    for decided_by, knob, applies in (
        (USER_BUFFERS, "fsdp_manual_registration", getattr(ddp, "nccl_ub", False)),
        (DOUBLE_BUFFER, "fsdp_double_buffer", reason is not None),
    ):
        if applies and decided_by.holds(c.stack) and not getattr(ddp, knob, False):
            setattr(ddp, knob, True)
            yield decided_by.decide(
                f"ddp.{knob}",
                requested=None,
                effective=True,
                reason=f"--use-megatron-fsdp, and {reason}",
                outcome=Outcome.NOTE,
            )
