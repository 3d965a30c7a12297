"""Makes a run's settings effective, by the rules of their framework."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron.bridge.training.job_environment import ENV_VARS, UNKNOWN, JobEnvironment
from megatron.bridge.training.megatron_lm_rules import MegatronLmRequest, update_megatron_lm
from megatron.bridge.training.rules.context import Gpu
from megatron.bridge.training.runtime_update import Update, update_runtime
from megatron.bridge.training.software import AssumedSoftware, Software
from overlapkit.config.megatron_lm.flag_words import words_of
from overlapkit.config.places import in_messages
from overlapkit.config.provider_defaults import FUSION, fusion_default
from overlapkit.config.run import Run, Settings, build_run

FRAMEWORKS = {"megatron-bridge": "Megatron-Bridge", "megatron-lm": "Megatron-LM"}
"""The name of each framework, as it is written."""


EFFECTIVE_KNOBS = (
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.virtual_pipeline_model_parallel_size",
    "model.context_parallel_size",
    "model.expert_model_parallel_size",
    "model.sequence_parallel",
    "model.tp_comm_overlap",
    "model.tp_comm_overlap_cfg",
    "model.tp_comm_bootstrap_backend",
    "model.overlap_p2p_comm",
    "model.batch_p2p_comm",
    "model.overlap_p2p_comm_warmup_flush",
    "model.defer_embedding_wgrad_compute",
    "model.wgrad_deferral_limit",
    "model.overlap_moe_expert_parallel_comm",
    "model.moe_shared_expert_overlap",
    "model.delay_wgrad_compute",
    "ddp.use_distributed_optimizer",
    "ddp.overlap_grad_reduce",
    "ddp.overlap_param_gather",
    "ddp.align_param_gather",
    "ddp.bucket_size",
    "ddp.grad_reduce_in_fp32",
    "ddp.fp8_param_gather",
    "ddp.delay_wgrad_compute",
    "optimizer.use_distributed_optimizer",
    "optimizer.overlap_param_gather",
    "optimizer.overlap_param_gather_with_optimizer_step",
)
"""The keys of `effective`: every knob that determines the overlap, with the run's value."""


def knob_value(run: Any, knob: str) -> Any:
    """A knob's value by its dotted name, on a run or a ConfigContainer; None without one."""
    section, _, name = knob.partition(".")
    return getattr(getattr(run, section), name, None)


def make_effective(
    settings: Settings,
    world_size: int,
    software: Software | None = None,
    environment: JobEnvironment = UNKNOWN,
    gpu: Gpu | None = None,
) -> tuple[Run, Update]:
    """The effective run of these settings, and every decision about it.

    Args:
        settings: as read; they are not changed.
        world_size: GPUs of the job.
        software: what is installed; looked up by default.
        environment: what is known of the job's environment, without the settings' env_vars.
        gpu: the job's GPU, where it is known.

    Raises:
        InputError: a section cannot be built.
        OverlapConfigError: the layout does not divide the world size.
    """
    run = build_run(settings)
    environment = replace(environment, places=_places(settings))
    launcher = settings.launch.launcher if settings.launch is not None else None
    if isinstance(software, AssumedSoftware):
        software = replace(software, stack=settings.stack)
    bridge = settings.framework == "megatron-bridge"
    if bridge and software is not None and FUSION not in (settings.values.get("model") or {}):
        run.model.gradient_accumulation_fusion = fusion_default(software)
    if settings.framework == "megatron-lm":
        request = megatron_lm_request(settings)
        update = update_megatron_lm(
            run,
            request,
            world_size,
            software=software,
            environment=environment,
            gpu=gpu,
            launcher=launcher,
            flags=settings.launch.flags if settings.launch is not None else (),
            version_known=settings.basis.source in ("given", "path"),
        )
        words = words_of(settings)
        update = replace(update, decisions=[words.decision(d) for d in update.decisions])
    else:
        update = update_runtime(
            run,
            world_size,
            software=software,
            environment=environment,
            gpu=gpu,
            launcher=launcher,
            strict=False,
        )
    return run, update


def _places(settings: Settings) -> dict[str, str]:
    """Where env_vars sets each variable: its line, or the override."""
    names = settings.values.get(ENV_VARS) or {}
    return {
        name: f"{in_messages(settings.where, f'{ENV_VARS}.{name}', settings.source)} ({ENV_VARS})"
        for name in names
    }


def megatron_lm_request(settings: Settings) -> MegatronLmRequest:
    """The flags of a Megatron-LM run that are not fields of Megatron-Core's configurations."""
    given: dict[str, Any] = settings.values.get("megatron_lm") or {}
    return MegatronLmRequest(**given)
