"""NeMo-RL: reinforcement learning on Megatron-Bridge; ``policy.megatron_cfg`` of its YAML.

Facts of NeMo-RL's nemo_rl/models/megatron/setup.py (001de1bab2): which keys it hands to
Megatron-Bridge's configurations, and the values that it sets itself. It uses no comm_overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron.bridge.training.versions import spoken
from overlapkit.config.launchers.build import product, settings_of, whole_number
from overlapkit.config.launchers.origin import Origin
from overlapkit.config.launchers.tree import (
    Keys,
    Mapped,
    Tree,
    with_overrides,
    with_parents,
)
from overlapkit.config.reading import Reading
from overlapkit.config.run import Launch, Settings
from overlapkit.config.schema import known_keys
from overlapkit.errors import InputError

NAME = "NeMo-RL"
ROOTS = frozenset({"policy", "cluster", "grpo", "dpo", "sft", "rm", "distillation", "generation"})
_CFG: Keys = ("policy", "megatron_cfg")
_DDP: Keys = (*_CFG, "distributed_data_parallel_config")
_MODEL = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "sequence_parallel",
    "moe_enable_deepep",
    "moe_token_dispatcher_type",
    "moe_shared_expert_overlap",
    "moe_permute_fusion",
    "moe_router_dtype",
    "moe_router_load_balancing_type",
    "moe_router_bias_update_rate",
    "apply_rope_fusion",
    "bias_activation_fusion",
    "attention_backend",
    "layernorm_epsilon",
)
"""Keys of megatron_cfg that become fields of the model, under the same name."""
_PASSED_DDP = (
    "grad_reduce_in_fp32",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "data_parallel_sharding_strategy",
)
"""Keys of distributed_data_parallel_config that it passes on; the others have no effect."""
_BASE: dict[str, Any] = {
    "ddp.use_distributed_optimizer": True,
    "optimizer.use_distributed_optimizer": True,
    "ddp.overlap_grad_reduce": True,
    "ddp.overlap_param_gather": True,
    "ddp.grad_reduce_in_fp32": False,
}
"""What NeMo-RL's examples/configs/grpo_math_1B.yaml (00294d9baa) sets, from which the others
inherit: every key must be set in one of them."""
_OTHER = frozenset(
    {
        "enabled",
        "optimizer",
        "scheduler",
        "distributed_data_parallel_config",
        "fp8_cfg",
        "env_vars",
        "activation_checkpointing",
        "pipeline_dtype",
        "train_iters",
    }
)


def matches(data: Mapping[str, Any]) -> bool:
    """Whether a configuration is NeMo-RL's."""
    policy = data.get("policy")
    marks = ("megatron_cfg", "dtensor_cfg", "train_global_batch_size")
    return isinstance(policy, Mapping) and any(mark in policy for mark in marks)


def read(
    tree: Tree,
    overrides: Sequence[str] = (),
    reading: Reading | None = None,
    launch: Launch | None = None,
) -> Settings:
    """The settings of the training of a NeMo-RL configuration.

    Args:
        tree: the configuration.
        overrides: of its own keys, or of Megatron's.
        reading: for which versions and how strictly it is read.
        launch: of the script that starts it; None for a file.

    Raises:
        InputError: it trains without Megatron-Core, or a key or value that no run can have.
    """
    tree, others = with_overrides(with_parents(tree), overrides, ROOTS)
    if tree.get(*_CFG, "enabled") is False or not tree.under(*_CFG):
        raise InputError(
            f"{tree.place(*_CFG, 'enabled').in_messages}: this is NeMo-RL's configuration, and "
            "policy.megatron_cfg.enabled is not true: it trains with DTensor (torch's FSDP2), "
            "which has no overlap settings of Megatron; look at it with overlapkit trace"
        )
    mapped = Mapped(defaults=dict(_BASE))
    mapped.take_all(tree, _CFG, "model", dict(zip(_MODEL, _MODEL, strict=True)))
    _precision(tree, mapped)
    _parallel(tree, mapped)
    _batch(tree, mapped)
    known = known_keys("model")
    mapped.ignored += [
        f"policy.megatron_cfg.{name}"
        for name in tree.under(*_CFG)
        if name in known and name not in _MODEL and name not in _OTHER
    ]
    return settings_of(tree, mapped, _launch(tree, launch), _origin(tree), others, reading)


def _precision(tree: Tree, mapped: Mapped) -> None:
    precision = tree.get("policy", "precision") or "bfloat16"
    place = tree.place("policy", "precision")
    for dotted, name in (("model.bf16", "bfloat16"), ("model.fp16", "float16")):
        mapped.defaults[dotted] = precision == name
    mapped.set("model.params_dtype", f"torch.{precision}", place)
    mapped.defaults["model.pipeline_dtype"] = f"torch.{precision}"
    if tree.get(*_CFG, "fp8_cfg", "enabled"):
        names = {name: name for name in ("fp8", "fp8_recipe", "fp8_param")}
        mapped.take_all(tree, (*_CFG, "fp8_cfg"), "model", names)
    if tree.get(*_CFG, "activation_checkpointing"):
        place = tree.place(*_CFG, "activation_checkpointing")
        for key, value in (("granularity", "full"), ("method", "uniform"), ("num_layers", 1)):
            mapped.set(f"model.recompute_{key}", value, place)


def _parallel(tree: Tree, mapped: Mapped) -> None:
    optimizer = known_keys("optimizer")
    passed = {name: name for name in tree.under(*_CFG, "optimizer") if name in optimizer}
    mapped.take_all(tree, (*_CFG, "optimizer"), "optimizer", passed)
    mapped.take(
        tree, (*_CFG, "optimizer", "use_distributed_optimizer"), "ddp.use_distributed_optimizer"
    )
    mapped.take_all(tree, _DDP, "ddp", dict(zip(_PASSED_DDP, _PASSED_DDP, strict=True)))
    mapped.defaults["ddp.check_for_nan_in_grad"] = True
    mapped.defaults["ddp.average_in_collective"] = False
    # It builds the optimizer from its own section alone, and DDP takes the gather from there.
    mapped.ignored += [
        f"{'.'.join(_DDP)}.{name}"
        for name, value in tree.under(*_DDP).items()
        if name not in _PASSED_DDP and value not in (None, False)
    ]
    experts = tree.get(*_CFG, "expert_model_parallel_size") or 1
    if type(experts) is int and experts > 1:
        mapped.defaults["model.num_moe_experts"] = experts


def _batch(tree: Tree, mapped: Mapped) -> None:
    for name in ("micro", "global"):
        mapped.take(tree, ("policy", f"train_{name}_batch_size"), f"train.{name}_batch_size")


def _launch(tree: Tree, launch: Launch | None) -> Launch:
    gpus, nodes = tree.get("cluster", "gpus_per_node"), tree.get("cluster", "num_nodes")
    size = product(nodes, gpus)
    if size is not None and tree.get("policy", "generation", "colocated", "enabled") is False:
        size = _without_generation(tree, int(nodes), int(gpus))
    unknown = (
        f"{tree.path}: cluster.num_nodes and cluster.gpus_per_node do not state the GPUs that train"
    )
    variables = {
        name: str(value)
        for name, value in tree.under(*_CFG, "env_vars").items()
        if value is not None
    }
    found = launch or Launch({})
    if variables:
        source = f"{tree.path} (policy.megatron_cfg.env_vars)"
        found = replace(
            found,
            environment={**found.environment, **variables},
            environment_source=source,
            whole=False,
        )
    return replace(found, world_size=size, world_size_unknown="" if size else unknown)


def _without_generation(tree: Tree, nodes: int, gpus: int) -> int | None:
    """GPUs that are left for the training where generation has its own."""
    own = ("policy", "generation", "colocated", "resources")
    own_nodes = whole_number(tree.get(*own, "num_nodes"))
    own_gpus = whole_number(tree.get(*own, "gpus_per_node"))
    left = (nodes - own_nodes) * gpus if own_nodes and nodes > 1 else None
    if nodes == 1 and own_gpus:
        left = gpus - own_gpus
    return left if left and left > 0 else None


def _origin(tree: Tree) -> Origin:
    remarks = [
        "this is NeMo-RL's configuration: it builds Megatron-Bridge's from policy.megatron_cfg, "
        "without comm_overlap, so the rules of Megatron-Bridge and Megatron-Core are applied "
        "(setup.py, 001de1bab2)",
        "the model comes from policy.model_name, which is not read; give its sizes as overrides "
        "(model.num_layers=36)",
    ]
    if tree.missing:
        remarks.append(
            f"{spoken(tree.missing)} is not here: for what it sets the values of NeMo-RL's "
            "grpo_math_1B.yaml (00294d9baa) are assumed: distributed optimizer, and both overlaps "
            "of data parallelism on"
        )
    if (tree.get(*_CFG, "expert_model_parallel_size") or 1) != 1:
        remarks.append("expert parallelism: the model is taken to have experts")
    return Origin(NAME, tuple(remarks))
