"""Runs for the rules of megatron.bridge, by the sections that differ from the defaults."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.job_environment import UNKNOWN, JobEnvironment
from megatron.bridge.training.mixed_precision import (
    MixedPrecisionConfig,
    mixed_precision_recipe,
)
from megatron.bridge.training.rules.context import Gpu, Launcher
from megatron.bridge.training.runtime_update import update_runtime
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.schema import section_fields

EVERYTHING = AssumedSoftware()


def section(name: str, **values: Any) -> SimpleNamespace:
    """A configuration with Megatron-Core's defaults; torch-free."""
    defaults = {key: known.default for key, known in section_fields(name).items()}
    return SimpleNamespace(**{**defaults, **values})


def precision_of(content: dict[str, Any] | str | None) -> MixedPrecisionConfig | None:
    """A mixed-precision section: a recipe's name, or its fields."""
    if content is None:
        return None
    given = mixed_precision_recipe(content) if isinstance(content, str) else content
    return MixedPrecisionConfig(**given)


def run_of(
    *,
    model: dict[str, Any] | None = None,
    ddp: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    comm: dict[str, Any] | None = None,
    dist: dict[str, Any] | None = None,
    rerun_state_machine: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    mixed_precision: dict[str, Any] | str | None = None,
    env_vars: dict[str, Any] | None = None,
) -> SimpleNamespace:
    sizes = {"num_layers": 8, "hidden_size": 256, "num_attention_heads": 8, "vocab_size": 1024}
    return SimpleNamespace(
        model=section("model", **{**sizes, **(model or {})}),
        ddp=section("ddp", **(ddp or {})),
        optimizer=section("optimizer", **(optimizer or {})),
        dist=section("dist", **(dist or {})),
        rerun_state_machine=section("rerun_state_machine", **(rerun_state_machine or {})),
        dataset=SimpleNamespace(**(dataset or {})),
        train=SimpleNamespace(**(train or {})),
        mixed_precision=precision_of(mixed_precision),
        env_vars=env_vars,
        comm_overlap=None if comm is None else CommOverlapConfig(**comm),
    )


def decisions_of(
    *,
    world_size: int = 16,
    software: AssumedSoftware = EVERYTHING,
    gpu: Gpu | None = None,
    launcher: Launcher | None = None,
    environment: JobEnvironment = UNKNOWN,
    **sections: Any,
) -> list[Decision]:
    return update_runtime(
        run_of(**sections),
        world_size,
        software=software,
        environment=environment,
        gpu=gpu,
        launcher=launcher,
        strict=False,
    ).decisions


def findings(decisions: list[Decision]) -> set[str]:
    return {d.rule for d in decisions if d.is_finding}


OFF = {"tp_comm_overlap": False}
DISTRIBUTED = {"use_distributed_optimizer": True}
MOE = {
    "num_moe_experts": 8,
    "expert_model_parallel_size": 4,
    "expert_tensor_parallel_size": 1,
    "moe_token_dispatcher_type": "alltoall",
    "bf16": True,
}
EP = {"tp_comm_overlap": False, "overlap_moe_expert_parallel_comm": True}
DELAY = {**EP, "delay_wgrad_compute": True}
TP4 = {"tensor_model_parallel_size": 4, "sequence_parallel": True}
