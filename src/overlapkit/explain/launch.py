"""The launch environment that a run needs, compared with what is known of its job's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from megatron.bridge.recipes.launch_check import contradictions, omissions
from megatron.bridge.recipes.launch_env import EnvironmentVariable, launch_environment
from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.recipes.megatron_lm_environment import environment_notes, environment_refusals
from megatron.bridge.recipes.one_queue import Overlapped, one_queue_consequences
from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import fsdp_switch
from megatron.bridge.training.rules.machine import MULTICAST_CAPABILITY
from overlapkit.config.effective import megatron_lm_request
from overlapkit.config.run import Run, Settings
from overlapkit.hardware import Gpu
from overlapkit.output.console import encodable

_LONGEST_VALUE = 80
"""Characters of an environment variable that are shown: a valid value has three."""


def judge_environment(
    settings: Settings,
    run: Run,
    world_size: int,
    environment: JobEnvironment,
    gpu: Gpu,
    *,
    gpu_given: bool,
    known: Iterable[Decision] = (),
) -> tuple[tuple[EnvironmentVariable, ...], list[Decision]]:
    """The variables that a run needs, and where its job's environment is not so.

    Args:
        settings: of the run; its framework and versions choose the rules.
        run: its effective configurations.
        world_size: GPUs of the job.
        environment: what is known of the job's environment.
        gpu: the cluster's.
        gpu_given: whether the user stated it.
        known: the decisions about the configuration: what stops the job there is not also
            reported as overlap that is lost.
    """
    needs = _launch_settings(run, world_size, gpu)
    required = launch_environment(needs, settings.stack)
    present = {
        v.name: encodable(value)[:_LONGEST_VALUE]
        for v in required
        if (value := environment.get(v.name)) is not None
    }
    shown = dataclasses.replace(environment, variables={**environment.variables, **present})
    decisions = _compared(required, shown)
    if not gpu_given:
        other = dataclasses.replace(needs, gpu_sm100_or_newer=not gpu.sm100_or_newer)
        there = _compared(launch_environment(other, settings.stack), shown)
        decisions = [_unless_another_gpu(d, there, gpu) for d in decisions]
    stops: list[Decision] = []
    notes: Iterable[Decision] = ()
    if settings.framework == "megatron-lm":
        stops = environment_refusals(
            run,
            present,
            environment.source,
            sm100_or_newer=gpu.sm100_or_newer,
            complete=environment.knows(CONNECTIONS),
            stack=settings.stack,
        )
        notes = environment_notes(
            run,
            sm100_or_newer=gpu.sm100_or_newer,
            groups=tuple(megatron_lm_request(settings).high_priority_stream_groups),
            stack=settings.stack,
        )
    decisions += one_queue_consequences(
        needs,
        Overlapped(overlaps_gradients(run, world_size), _overlaps_sends(run)),
        shown,
        settings.stack,
        demanded=settings.framework == "megatron-lm",
    )
    stopped = {d.knob for d in (*stops, *known) if d.outcome is Outcome.ERROR}
    return required, [d for d in decisions if d.knob not in stopped] + stops + list(notes)


def _compared(
    required: Sequence[EnvironmentVariable], environment: JobEnvironment
) -> list[Decision]:
    return [*contradictions(required, environment), *omissions(required, environment)]


def _unless_another_gpu(d: Decision, there: Iterable[Decision], gpu: Gpu) -> Decision:
    """A decision for a GPU that is assumed, with one more remedy where that alone makes a finding.

    Args:
        d: the decision.
        there: the decisions for a GPU of the other generation.
        gpu: the assumed GPU.
    """
    if not d.is_finding or any(x.knob == d.knob and x.is_finding for x in there):
        return d
    other = "Hopper or older" if gpu.sm100_or_newer else "Blackwell or newer"
    remedy = (d.remedy or "").rstrip(".")
    return dataclasses.replace(d, remedy=f"{remedy}; on {other} it is right: state --gpu.")


def _launch_settings(run: Run, world_size: int, gpu: Gpu) -> LaunchSettings:
    model = run.model
    flex = model.num_moe_experts and model.moe_token_dispatcher_type == "flex"
    splits = max(model.tensor_model_parallel_size or 1, model.context_parallel_size or 1) > 1
    experts = model.overlap_moe_expert_parallel_comm or model.moe_shared_expert_overlap
    gradients = overlaps_gradients(run, world_size)
    return LaunchSettings(
        gpu_sm100_or_newer=gpu.sm100_or_newer,
        tp_size=model.tensor_model_parallel_size,
        cp_size=model.context_parallel_size,
        pp_size=model.pipeline_model_parallel_size,
        num_gpus=world_size,
        moe_flex_dispatcher_backend=model.moe_flex_dispatcher_backend if flex else None,
        a2a_overlap=bool(model.overlap_moe_expert_parallel_comm),
        userbuffers=bool(model.tp_comm_overlap) and model.tensor_model_parallel_size > 1,
        multicast=float(gpu.least_capability) >= MULTICAST_CAPABILITY,
        fsdp=fsdp_switch(run.ddp, run.dist) is not None,
        overlaps=bool(gradients or _overlaps_sends(run) or splits or experts or flex),
        # Only Transformer Engine's norms have a margin, for what runs beside them.
        enable_layernorm_sm_margin=gradients and model.transformer_impl != "local",
    )


def overlaps_gradients(run: Run, world_size: int) -> bool:
    """Whether gradients are reduced or parameters gathered while the model computes."""
    model, ddp = run.model, run.ddp
    stages = (model.tensor_model_parallel_size or 1) * (model.pipeline_model_parallel_size or 1)
    if world_size // stages < 2:
        return False
    fsdp = fsdp_switch(ddp, run.dist) is not None
    return fsdp or bool(ddp.overlap_grad_reduce or ddp.overlap_param_gather)


def _overlaps_sends(run: Run) -> bool:
    return (run.model.pipeline_model_parallel_size or 1) > 1 and bool(run.model.overlap_p2p_comm)
