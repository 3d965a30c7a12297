"""Changes of settings that remedies for Megatron-LM's own checks have in common."""

from __future__ import annotations

from megatron.bridge.training.edits import Edit
from megatron.bridge.training.rules.context import Context, fsdp_switch


def _both(name: str, *, on: bool) -> tuple[Edit, ...]:
    """A flag that sets ddp's field and the optimizer's."""
    return Edit(f"ddp.{name}", on), Edit(f"optimizer.{name}", on)


DISTRIBUTED = _both("use_distributed_optimizer", on=True)
NOT_DISTRIBUTED = _both("use_distributed_optimizer", on=False)
GATHER_OFF = _both("overlap_param_gather", on=False)
STEP_OFF = (Edit("optimizer.overlap_param_gather_with_optimizer_step", False),)
FP8_GATHER_OFF = (Edit("ddp.fp8_param_gather", False), Edit("model.fp8_param", False))
TORCH_FSDP2 = "use_torch_fsdp2"


def together(*edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Changes of several settings, each setting once."""
    return tuple({edit.key: edit for each in edits for edit in each}.values())


def without_fsdp(c: Context) -> tuple[Edit, ...]:
    """The same training without FSDP, with what its other flags then need."""
    switch = fsdp_switch(c.ddp)
    if switch is None:
        return ()
    if switch == TORCH_FSDP2:
        edits: tuple[Edit, ...] = (Edit(f"megatron_lm.{TORCH_FSDP2}", False),)
    else:
        edits = (Edit(f"ddp.{switch}", False), Edit("megatron_lm.ckpt_format", "torch_dist"))
    if c.of_ddp("fsdp_manual_registration"):
        edits += (Edit("ddp.fsdp_manual_registration", False),)
    gathers = c.of_ddp("overlap_param_gather") or c.of_ddp("fp8_param_gather")
    needs = gathers and not c.of_ddp("use_distributed_optimizer")
    return together(edits, DISTRIBUTED if needs else ())
