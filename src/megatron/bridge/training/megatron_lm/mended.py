"""Changes of settings that remedies for Megatron-LM's own checks have in common."""

from __future__ import annotations

from megatron.bridge.training.edits import Edit
from megatron.bridge.training.remedies import distributed_optimizer, parameters_not_in
from megatron.bridge.training.rules.context import Context


def _both(name: str, *, on: bool) -> tuple[Edit, ...]:
    """A flag that sets ddp's field and the optimizer's."""
    return Edit(f"ddp.{name}", on), Edit(f"optimizer.{name}", on)


DISTRIBUTED = _both("use_distributed_optimizer", on=True)
NOT_DISTRIBUTED = _both("use_distributed_optimizer", on=False)
GATHER_OFF = _both("overlap_param_gather", on=False)
STEP_OFF = (Edit("optimizer.overlap_param_gather_with_optimizer_step", False),)
FP8_GATHER_OFF = (Edit("ddp.fp8_param_gather", False), Edit("model.fp8_param", False))
_SWITCHES = ("use_megatron_fsdp", "use_custom_fsdp")
TORCH_FSDP2 = "use_torch_fsdp2"


def together(*edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Changes of several settings, each setting once."""
    return tuple({edit.key: edit for each in edits for edit in each}.values())


def distributed(c: Context) -> tuple[Edit, ...]:
    """The distributed optimizer on, with what that asks of this run's version."""
    return together(DISTRIBUTED, distributed_optimizer(c))


def not_distributed(c: Context, *, gathers: bool = False) -> tuple[Edit, ...]:
    """The distributed optimizer off, with what needs it.

    Args:
        c: the run.
        gathers: whether its optimizer gathers parameters without it.
    """
    return together(
        NOT_DISTRIBUTED,
        GATHER_OFF if c.of_ddp("overlap_param_gather") and not gathers else (),
        STEP_OFF if c.of_optimizer("overlap_param_gather_with_optimizer_step") else (),
        parameters_not_in(c, "fp8") if c.of_ddp("fp8_param_gather") else (),
        one_instance(c),
    )


def one_instance(c: Context) -> tuple[Edit, ...]:
    """One optimizer instance, where there are several."""
    several = (c.of_ddp("num_distributed_optimizer_instances") or 1) > 1
    return (Edit("ddp.num_distributed_optimizer_instances", 1),) if several else ()


def without_fsdp(c: Context) -> tuple[Edit, ...]:
    """The same training without FSDP, with what its other flags then need."""
    edits: tuple[Edit, ...] = tuple(
        Edit(f"ddp.{name}", False) for name in _SWITCHES if c.of_ddp(name)
    )
    if edits:
        edits += (Edit("megatron_lm.ckpt_format", "torch_dist"),)
    if c.of_ddp(TORCH_FSDP2):
        edits += (Edit(f"megatron_lm.{TORCH_FSDP2}", False),)
    if c.of_ddp("fsdp_manual_registration"):
        edits += (Edit("ddp.fsdp_manual_registration", False),)
    gathers = c.of_ddp("overlap_param_gather") or c.of_ddp("fp8_param_gather")
    # FSDP keeps FP8 parameters out of the gradient buffer, where some versions gather them wrongly.
    reused = c.of_ddp("fp8_param_gather") and c.of_ddp("reuse_grad_buf_for_mxfp8_param_ag")
    return together(
        edits,
        distributed(c) if gathers and edits else (),
        parameters_not_in(c, "fp8") if reused and edits else (),
    )
