"""Builds real Megatron-Core objects from a variant's settings, through `ConfigContainer`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE
from megatron.core.optimizer import get_megatron_optimizer

from megatron.bridge.models import GPTModelProvider
from megatron.bridge.training.comm_overlap import InstalledSoftware
from megatron.bridge.training.config import (
    ConfigContainer,
    DistributedDataParallelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from megatron.bridge.training.job_environment import this_process
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.mixed_precision_recipes import DTYPE_FIELDS
from megatron.bridge.training.runtime_update import update_runtime
from overlapkit.config.run import build_run, read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.lab.corpus import VOCABULARY
from overlapkit.lab.protocol import Variant
from overlapkit.lab.rank import userbuffers
from overlapkit.lab.rank.layer_spec import own_layer_spec
from overlapkit.lab.rank.weights import initialize

_ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "relu": torch.nn.functional.relu,
}

_OWN_KERNELS = {
    "transformer_impl": "local",
    "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "cross_entropy_loss_fusion": False,
    "persist_layer_norm": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
}
"""Without CUDA kernels of Apex or Transformer Engine, and without compilation."""


@dataclass
class Built:
    """What a rank trains.

    Attributes:
        config: the configurations, after all rules.
        chunks: the rank's model chunks, wrapped by Megatron-Core's DistributedDataParallel.
        optimizer: Megatron-Core's.
    """

    config: ConfigContainer
    chunks: list[DistributedDataParallel]
    optimizer: Any


def container(variant: Variant, device: str) -> ConfigContainer:
    """The variant's configurations, before any rule was applied.

    Raises:
        InputError: the settings contain a value that no run can have.
    """
    settings = read_settings(Document(f"variant {variant.name}", variant.settings))
    run = build_run(settings)
    given = settings.values
    model = {
        "vocab_size": VOCABULARY,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        **_fields(GPTModelProvider, given.get("model")),
    }
    if device == "cpu":
        model["use_cpu_initialization"] = True
        # The providers' default frees activations that gloo still sends: core.sent-then-freed.
        model.setdefault("deallocate_pipeline_outputs", False)
    if device == "cpu" or not HAVE_TE:
        model |= _OWN_KERNELS
        model["transformer_layer_spec"] = own_layer_spec
    if run.mixed_precision is None:
        # Megatron-Core requires it whenever there is a pipeline.
        model.setdefault("pipeline_dtype", model.get("params_dtype", torch.float32))
    return ConfigContainer(
        model=GPTModelProvider(**model),
        optimizer=OptimizerConfig(**_fields(OptimizerConfig, given.get("optimizer"))),
        ddp=DistributedDataParallelConfig(
            **_fields(DistributedDataParallelConfig, given.get("ddp"))
        ),
        train=TrainingConfig(**_fields(TrainingConfig, given.get("train"))),
        mixed_precision=_with_dtypes(run.mixed_precision),
        comm_overlap=run.comm_overlap,
    )


def configure(variant: Variant, device: str, world_size: int) -> ConfigContainer:
    """The variant's configurations after all rules, and then with the values that it forces.

    Raises:
        InputError, OverlapConfigError, ValueError, AssertionError: the rules or Megatron-Core
            refuse the variant.
    """
    config = container(variant, device)
    if variant.bypass:
        _apply_all(config, world_size)
    else:
        config.apply_runtime_config(world_size)
    for dotted, value in variant.force.items():
        section, _, key = dotted.partition(".")
        setattr(getattr(config, section), key, value)
    return config


def layout_of(config: ConfigContainer) -> dict[str, int | None]:
    """Arguments of Megatron-Core's `initialize_model_parallel` for a configuration's layout."""
    model = config.model
    return {
        "tensor_model_parallel_size": model.tensor_model_parallel_size,
        "pipeline_model_parallel_size": model.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": model.virtual_pipeline_model_parallel_size,
        "context_parallel_size": model.context_parallel_size,
        "expert_model_parallel_size": model.expert_model_parallel_size,
        "expert_tensor_parallel_size": model.expert_tensor_parallel_size,
        "num_distributed_optimizer_instances": config.ddp.num_distributed_optimizer_instances,
    }


def enter_layout(config: ConfigContainer) -> None:
    """Create Megatron-Core's process groups for a configuration's layout.

    Existing groups of the same layout are kept. The number of virtual stages does not affect them:
    Megatron-Core keeps it in a separate variable.
    """
    wanted = layout_of(config)
    vpp = wanted.pop("virtual_pipeline_model_parallel_size")
    if parallel_state.model_parallel_is_initialized() and wanted != _entered:
        leave_layout()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(**wanted, create_gloo_process_groups=False)
        _entered.update(wanted)
    parallel_state.set_virtual_pipeline_model_parallel_world_size(vpp)
    parallel_state.set_virtual_pipeline_model_parallel_rank(None if vpp is None else 0)


_entered: dict[str, int | None] = {}


def leave_layout() -> None:
    """Destroy Megatron-Core's process groups and their connections."""
    if not parallel_state.model_parallel_is_initialized():
        return
    groups = {
        id(value): value
        for value in vars(parallel_state).values()
        if isinstance(value, torch.distributed.ProcessGroup)
        and value is not torch.distributed.group.WORLD
    }
    parallel_state.destroy_model_parallel()
    _entered.clear()
    for group in groups.values():
        # Megatron-Core also keeps groups that this rank is not a member of.
        if torch.distributed.get_rank(group) >= 0:
            torch.distributed.destroy_process_group(group)


def build(config: ConfigContainer, device: str) -> Built:
    """The rank's model chunks and optimizer; the rules must have been applied to `config`."""
    model, ddp = config.model, config.ddp
    enter_layout(config)
    if device == "cuda":
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(1)
        if model.tp_comm_overlap:
            userbuffers.make(model, config.train.micro_batch_size or 1)
    stages = model.virtual_pipeline_model_parallel_size
    bare = [
        model.provide(vp_stage=stage if stages is not None else None)
        for stage in range(stages or 1)
    ]
    late_gather = bool(getattr(config.optimizer, "overlap_param_gather_with_optimizer_step", False))
    chunks = []
    for stage, chunk in enumerate(bare):
        chunk.to(device)
        initialize(chunk)
        if model.bf16 or model.fp16:
            from megatron.core.transformer.module import Float16Module

            chunk = Float16Module(model, chunk)
        chunks.append(
            DistributedDataParallel(model, ddp, chunk, disable_bucketing=stage > 0 or late_gather)
        )
    optimizer = get_megatron_optimizer(config.optimizer, chunks, use_gloo_process_groups=False)
    model.grad_scale_func = optimizer.scale_loss
    model.finalize_model_grads_func = finalize_model_grads
    model.no_sync_func = model.grad_sync_func = model.param_sync_func = None
    if ddp.overlap_grad_reduce:
        model.no_sync_func = _for_each(chunks, "no_sync")
        if getattr(ddp, "align_grad_reduce", True):
            model.grad_sync_func = _for_each(chunks, "start_grad_sync")
    if ddp.overlap_param_gather and ddp.align_param_gather:
        model.param_sync_func = _for_each(chunks, "start_param_sync")
    return Built(config, chunks, optimizer)


def _for_each(chunks: list[DistributedDataParallel], method: str) -> Any:
    """Megatron-Core's schedules expect one function for one chunk, and a list for several."""
    bound = [getattr(chunk, method) for chunk in chunks]
    return bound if len(bound) > 1 else bound[0]


def _fields(of: type, given: dict[str, Any] | None) -> dict[str, Any]:
    """A dataclass's fields from a YAML section: numbers, switches, names, dtypes."""
    known = {f.name for f in dataclasses.fields(of)}
    result = {}
    for key, value in (given or {}).items():
        if key not in known or value is None:
            continue
        if key == "activation_func":
            name = str(value).rpartition(".")[2]
            if name in _ACTIVATIONS:
                result[key] = _ACTIVATIONS[name]
            continue
        # moe_router_dtype is a name of Megatron-Core's own, such as fp32.
        if isinstance(value, str) and key.endswith("dtype") and key != "moe_router_dtype":
            result[key] = _dtype(value)
        elif isinstance(value, bool | int | float | str | list):
            result[key] = value
    return result


def _with_dtypes(precision: MixedPrecisionConfig | None) -> MixedPrecisionConfig | None:
    if precision is not None:
        for name in DTYPE_FIELDS:
            value = getattr(precision, name)
            if isinstance(value, str):
                setattr(precision, name, _dtype(value))
    return precision


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name.rpartition(".")[2])
    assert isinstance(found, torch.dtype)
    return found


def _apply_all(config: ConfigContainer, world_size: int) -> None:
    """As `ConfigContainer.apply_runtime_config`, but no rule stops the run: Megatron-Core may."""
    config.set_data_parallel_size(world_size)
    update = update_runtime(
        config,
        world_size,
        software=InstalledSoftware(),
        environment=this_process(),
        strict=False,
    )
    config.decisions = update.decisions
    config.validate()
