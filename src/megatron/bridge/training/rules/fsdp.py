"""Data parallelism by FSDP: what Megatron-Bridge changes for it, and what it makes ineffective.

Megatron-FSDP and torch's FSDP2 replace Megatron DDP. Megatron-Bridge reads either switch from its
section dist, and adapts other settings to Megatron-FSDP after comm_overlap was applied.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.remedies import Edits, off
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.refusal import Refusal, override, refused
from megatron.bridge.training.versions import MAIN, Range

_VERSION_1 = (Edit("ddp.megatron_fsdp_version", 1),)

FSDP_SYNC = rule(
    "bridge.fsdp-sync",
    Dimension.DP,
    claim="use_megatron_fsdp on either dist or ddp turns it on for both.",
    source="Megatron-Bridge src/megatron/bridge/training/config.py",
)
_V1 = "Megatron-Bridge a8f6ce3f7"
_V2 = "Megatron-Bridge ed56c0a0c"

FUSION_OFF = rule(
    "bridge.fsdp-no-fusion",
    Dimension.DP,
    claim="Megatron-FSDP turns gradient_accumulation_fusion off.",
    versions=(Range("bridge", until="0.4.2"),),
    source="Megatron-Bridge 55307dd02, removed by d0c4044a8",
)
AVERAGE_OFF = rule(
    "bridge.fsdp-no-average",
    Dimension.DP,
    claim="Megatron-FSDP turns average_in_collective off.",
    versions=(Range("bridge", until="0.4.2"),),
    source="Megatron-Bridge src/megatron/bridge/training/config.py",
)
AVERAGE_OFF_REGISTERED = rule(
    "bridge.fsdp-no-average-registered",
    Dimension.DP,
    claim="Megatron-FSDP turns average_in_collective off while symmetric registration of its "
    "buffers is enabled.",
    remedy="set ddp.disable_symmetric_registration=true",
    edits=(Edit("ddp.disable_symmetric_registration", True),),
    versions=(Range("bridge", since="0.4.2"),),
    source="Megatron-Bridge c15475efe",
)
REUSE_OFF = rule(
    "bridge.fsdp-no-reuse",
    Dimension.DP,
    claim="Megatron-FSDP turns reuse_grad_buf_for_mxfp8_param_ag off for ddp and optimizer.",
    source="Megatron-Bridge src/megatron/bridge/training/config.py",
)
DISTRIBUTED_ON = rule(
    "bridge.fsdp-distributed-optimizer",
    Dimension.DP,
    claim="Megatron-FSDP version 1 turns the distributed optimizer on.",
    versions=(Range("bridge", since="0.5.1"),),
    source=_V1,
)
DECOUPLED_ON = rule(
    "bridge.fsdp-decoupled-grad",
    Dimension.DP,
    claim="Megatron-FSDP with the precision-aware optimizer turns "
    "megatron_fsdp_use_decoupled_grad on.",
    versions=(Range("bridge", since="0.5.1"),),
    source=_V1,
)
REGISTRATION_ON = rule(
    "bridge.fsdp-registration",
    Dimension.DP,
    claim="Megatron-FSDP with nccl_ub turns fsdp_manual_registration on: registering buffers one "
    "by one is slow.",
    versions=(Range("bridge", since="0.5.1"),),
    source=_V1,
)
V2_OFF = rule(
    "bridge.fsdp-v2-no-overlap",
    Dimension.DP,
    claim="Version 2 of Megatron-FSDP turns the distributed optimizer, gradient accumulation "
    "fusion and every overlap of ddp and optimizer off, and shards optimizer, gradients and "
    "parameters.",
    remedy="set ddp.megatron_fsdp_version=1",
    edits=_VERSION_1,
    versions=(Range("bridge", since=MAIN),),
    source=_V2,
)
TORCH_IGNORES = rule(
    "dp.torch-fsdp2-ignores",
    Dimension.DP,
    claim="torch's FSDP2 ignores the overlap knobs of ddp and optimizer: its own prefetching "
    "decides, and nothing says so.",
    remedy="set the knob to false, or dist.use_torch_fsdp2=false",
    source="Megatron-LM megatron/core/distributed/torch_fully_sharded_data_parallel.py",
)

_DDP_KNOBS = (
    "ddp.overlap_grad_reduce",
    "ddp.overlap_param_gather",
    "ddp.align_param_gather",
    "optimizer.overlap_param_gather_with_optimizer_step",
)

_V2_TURNS_OFF = (
    "ddp.use_distributed_optimizer",
    "optimizer.use_distributed_optimizer",
    "ddp.overlap_grad_reduce",
    "ddp.overlap_param_gather",
    "optimizer.overlap_param_gather",
    "optimizer.overlap_param_gather_with_optimizer_step",
    "model.gradient_accumulation_fusion",
    "ddp.fsdp_all_gather_in_start_param_sync",
)


def _megatron_fsdp(c: Context) -> bool:
    return bool(c.of_ddp("use_megatron_fsdp") or c.of_dist("use_megatron_fsdp"))


def _is_v2(c: Context) -> bool:
    """Whether version 2 is chosen and the run's Megatron-Bridge has it."""
    return V2_OFF.holds(c.stack) and c.of_ddp("megatron_fsdp_version", 1) == 2


def is_version_1(c: Context) -> bool:
    """Whether Megatron-FSDP is on, in the version that Megatron-Bridge has always had."""
    return _megatron_fsdp(c) and not _is_v2(c)


def update_fsdp(c: Context) -> Iterator[Decision]:
    """What Megatron-Bridge changes where Megatron-FSDP is on, in place, in its order."""
    if not _megatron_fsdp(c):
        return
    for section, other in (("dist", "ddp"), ("ddp", "dist")):
        reason = f"it is on for {other}, so it was turned on for both"
        yield from override(c, FSDP_SYNC, f"{section}.use_megatron_fsdp", True, reason)
    yield from _update_v2(c) if _is_v2(c) else _update_v1(c)


def _update_v1(c: Context) -> Iterator[Decision]:
    on = "Megatron-FSDP is on"
    yield from override(c, FUSION_OFF, "model.gradient_accumulation_fusion", False, on)
    for section in ("ddp", "optimizer"):
        knob = f"{section}.use_distributed_optimizer"
        yield from override(c, DISTRIBUTED_ON, knob, True, f"{on}, which needs it")
    if c.of_optimizer("use_precision_aware_optimizer"):
        yield from override(
            c,
            DECOUPLED_ON,
            "ddp.megatron_fsdp_use_decoupled_grad",
            True,
            f"{on} with use_precision_aware_optimizer",
        )
    yield from override(c, AVERAGE_OFF, "ddp.average_in_collective", False, on)
    if not c.of_ddp("disable_symmetric_registration"):
        reason = f"{on} and disable_symmetric_registration is off"
        yield from override(c, AVERAGE_OFF_REGISTERED, "ddp.average_in_collective", False, reason)
    for section in ("ddp", "optimizer"):
        knob = f"{section}.reuse_grad_buf_for_mxfp8_param_ag"
        yield from override(c, REUSE_OFF, knob, False, f"{on}, which does not have it")
    if c.of_ddp("nccl_ub"):
        reason = f"{on} with nccl_ub"
        yield from override(c, REGISTRATION_ON, "ddp.fsdp_manual_registration", True, reason)


def _update_v2(c: Context) -> Iterator[Decision]:
    on = "megatron_fsdp_version is 2"
    strategy = "ddp.data_parallel_sharding_strategy"
    yield from override(c, V2_OFF, strategy, "optim_grads_params", on)
    for knob in _V2_TURNS_OFF:
        yield from override(c, V2_OFF, knob, False, on)


def fsdp_consequences(c: Context) -> Iterator[Decision]:
    """What Megatron-Bridge refuses beside FSDP, and the knobs that torch's FSDP2 ignores."""
    yield from refused(c, FSDP_REFUSALS)
    if not c.of_dist("use_torch_fsdp2"):
        return
    for knob in _DDP_KNOBS:
        section, _, name = knob.partition(".")
        if not getattr(getattr(c, section), name, False):
            continue
        # What comm_overlap turned on by default was not asked for by name.
        is_default = c.has_comm_overlap and getattr(c.request, name, None) is None
        edits = _ignored_off(c, knob)
        yield TORCH_IGNORES.decide(
            knob,
            requested=None if is_default else True,
            effective=False,
            reason="dist.use_torch_fsdp2 is on: torch's wrapper does not read it"
            + (" (comm_overlap turned it on by default)" if is_default else ""),
            outcome=Outcome.NOTE if is_default else Outcome.REFUSED,
            remedy=either(edits, "dist.use_torch_fsdp2=false"),
            edits=edits,
        )


def _ignored_off(c: Context, knob: str) -> Edits:
    edits = off(knob)(c)
    # Either of ddp's and the optimizer's gather turns the other one on.
    if knob == "ddp.overlap_param_gather" and not c.sets_data_parallel:
        edits += (Edit("optimizer.overlap_param_gather", False),)
    return edits


def _v2_rule(rule_id: str, claim: str, remedy: str = "") -> Rule:
    """A refusal of version 2, which version 1 does not have."""
    return rule(
        rule_id,
        Dimension.DP,
        claim=f"Version 2 of Megatron-FSDP is refused {claim}.",
        remedy=either(_VERSION_1, remedy),
        edits=_VERSION_1,
        versions=(Range("bridge", since=MAIN),),
        source=_V2,
        depth=2,
    )


def _v2(c: Context) -> bool:
    return _megatron_fsdp(c) and _is_v2(c)


def _divided(c: Context) -> str:
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    return ", ".join(f"{s} is {c.of_model(s)}" for s in sizes if (c.of_model(s) or 1) > 1)


_VERSION = "ddp.megatron_fsdp_version"

FSDP_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "bridge.fsdp-excludes-torch",
            Dimension.DP,
            claim="use_megatron_fsdp and use_torch_fsdp2 exclude each other.",
            remedy="set dist.use_torch_fsdp2=false",
            edits=(Edit("dist.use_torch_fsdp2", False),),
            source="Megatron-Bridge src/megatron/bridge/training/config.py",
        ),
        "dist.use_torch_fsdp2",
        lambda c: (
            "use_megatron_fsdp is on too"
            if c.of_dist("use_torch_fsdp2") and _megatron_fsdp(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "bridge.fsdp-excludes-mapping",
            Dimension.DP,
            claim="Megatron-FSDP is refused with use_tp_pp_dp_mapping, which numbers the ranks of "
            "the pipeline before the data-parallel ones.",
            remedy="set dist.use_tp_pp_dp_mapping=false",
            edits=(Edit("dist.use_tp_pp_dp_mapping", False),),
            source="Megatron-Bridge src/megatron/bridge/training/config.py",
        ),
        "dist.use_tp_pp_dp_mapping",
        lambda c: (
            "use_megatron_fsdp is on: an assertion stops the job at start"
            if c.of_dist("use_tp_pp_dp_mapping") and _megatron_fsdp(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "bridge.fsdp-registration-needs",
            Dimension.DP,
            claim="Under Megatron-FSDP fsdp_manual_registration is refused without nccl_ub.",
            remedy="set ddp.fsdp_manual_registration=false, or ddp.nccl_ub=true",
            edits=(Edit("ddp.fsdp_manual_registration", False),),
            versions=(Range("bridge", since="0.5.1"),),
            source=_V1,
        ),
        "ddp.fsdp_manual_registration",
        lambda c: (
            "nccl_ub is off"
            if _megatron_fsdp(c)
            and not _is_v2(c)
            and c.of_ddp("fsdp_manual_registration")
            and not c.of_ddp("nccl_ub")
            else ""
        ),
    ),
    Refusal(
        _v2_rule(
            "bridge.fsdp-v2-layout",
            "with tensor, pipeline or context parallelism",
            "model.tensor_model_parallel_size, pipeline_model_parallel_size and "
            "context_parallel_size to 1",
        ),
        _VERSION,
        lambda c: _divided(c) if _v2(c) else "",
    ),
    Refusal(
        _v2_rule("bridge.fsdp-v2-precision", "without bf16", "mixed_precision=bf16_mixed"),
        _VERSION,
        lambda c: (
            f"model.bf16 is {c.of_model('bf16')} and model.fp16 is {c.of_model('fp16')}"
            if _v2(c) and (not c.of_model("bf16") or c.of_model("fp16"))
            else ""
        ),
    ),
    Refusal(
        _v2_rule("bridge.fsdp-v2-fp8", "with FP8 or FP4", "mixed_precision=bf16_mixed"),
        _VERSION,
        lambda c: (
            f"model.fp8 is {c.of_model('fp8')!r} and model.fp4 is {c.of_model('fp4')!r}"
            if _v2(c) and (c.of_model("fp8") or c.of_model("fp4"))
            else ""
        ),
    ),
    Refusal(
        _v2_rule("bridge.fsdp-v2-experts", "with experts"),
        _VERSION,
        lambda c: (
            f"num_moe_experts is {c.of_model('num_moe_experts')}"
            if _v2(c) and c.of_model("num_moe_experts")
            else ""
        ),
    ),
    Refusal(
        _v2_rule(
            "bridge.fsdp-v2-instances",
            "with more than one instance of the distributed optimizer",
            "num_distributed_optimizer_instances=1",
        ),
        "ddp.num_distributed_optimizer_instances",
        lambda c: (
            "megatron_fsdp_version is 2"
            if _v2(c) and (c.of_ddp("num_distributed_optimizer_instances") or 1) > 1
            else ""
        ),
    ),
)
"""In the order in which they are reported."""
