"""Makes a run's settings effective by the rules of the framework that they are for."""

from __future__ import annotations

from typing import Any

from megatron.bridge.training.megatron_lm_rules import MegatronLmRequest, update_megatron_lm
from megatron.bridge.training.runtime_update import Update, update_runtime
from megatron.bridge.training.software import Software
from overlapkit.config.run import Run, Settings, build_run

FRAMEWORKS = {"megatron-bridge": "Megatron-Bridge", "megatron-lm": "Megatron-LM"}
"""How each framework is written."""


def make_effective(
    settings: Settings, world_size: int, software: Software | None = None
) -> tuple[Run, Update]:
    """The run that settings end up as, and every decision on the way.

    Args:
        settings: as read; they stay as they are.
        world_size: GPUs of the job.
        software: what is installed; by default looked up.

    Raises:
        InputError: a section cannot be built.
        OverlapConfigError: the layout does not divide the world size.
    """
    run = build_run(settings)
    if settings.framework == "megatron-lm":
        request = megatron_lm_request(settings)
        return run, update_megatron_lm(run, request, world_size, software=software)
    return run, update_runtime(run, world_size, software=software, strict=False)


def megatron_lm_request(settings: Settings) -> MegatronLmRequest:
    """The flags of a Megatron-LM run that are no field of Megatron-Core's configurations."""
    given: dict[str, Any] = settings.values.get("megatron_lm") or {}
    return MegatronLmRequest(**given)
