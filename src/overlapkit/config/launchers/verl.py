"""verl: reinforcement learning over Megatron-Core; ``actor_rollout_ref.actor.megatron``.

Facts of verl's verl/trainer/config/engine/megatron.yaml (0b8f32c718),
verl/utils/megatron_utils.py (000e658205), verl/models/mcore/config_converter.py (068d82f599),
verl/workers/engine/megatron/transformer_impl.py (01ee5e04e1) and verl/trainer/constants_ppo.py
(0.5.0): its defaults, the data-parallel settings that it sets itself, and the variable that it sets
for its workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from overlapkit.config.launchers.build import product, settings_of
from overlapkit.config.launchers.origin import Origin
from overlapkit.config.launchers.tree import Keys, Mapped, Tree, with_overrides
from overlapkit.config.reading import Reading
from overlapkit.config.run import Launch, Settings
from overlapkit.errors import InputError

NAME = "verl"
ROOTS = frozenset(
    {
        "actor_rollout_ref",
        "trainer",
        "critic",
        "data",
        "algorithm",
        "reward_model",
        "engine",
        "optim",
    }
)
_ACTOR: Keys = ("actor_rollout_ref", "actor")
_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)
_DEFAULTS: dict[str, Any] = {
    "ddp.grad_reduce_in_fp32": True,
    "ddp.overlap_grad_reduce": False,
    "ddp.use_distributed_optimizer": True,
    "optimizer.use_distributed_optimizer": True,
    "model.batch_p2p_comm": False,
    "model.variable_seq_lengths": True,
    "model.masked_softmax_fusion": True,
    "model.moe_token_dispatcher_type": "alltoall",
    # verl builds the model without Megatron-Bridge's providers, or sets what it needs.
    "model.gradient_accumulation_fusion": False,
    "model.cross_entropy_loss_fusion": False,
    "model.deallocate_pipeline_outputs": False,
}


def matches(data: Mapping[str, Any]) -> bool:
    """Whether a configuration is verl's."""
    if isinstance(data.get("actor_rollout_ref"), Mapping):
        return True
    engine = data.get("engine")
    return isinstance(engine, Mapping) and "override_transformer_config" in engine


def read(
    tree: Tree,
    overrides: Sequence[str] = (),
    reading: Reading | None = None,
    launch: Launch | None = None,
) -> Settings:
    """The settings of the training of verl's actor.

    Args:
        tree: the configuration.
        overrides: of its own keys, or of Megatron's.
        reading: for which versions and how strictly it is read.
        launch: of the script that starts it; None for a file.

    Raises:
        InputError: it trains without Megatron-Core, or a key or value that no run can have.
    """
    tree, others = with_overrides(tree, overrides, ROOTS)
    engine = _engine(tree)
    mapped = Mapped(defaults=dict(_DEFAULTS))
    mapped.take_all(tree, engine, "model", dict(zip(_SIZES, _SIZES, strict=True)))
    _model(tree, engine, mapped)
    for section in ("ddp", "optimizer"):
        mapped.take(
            tree, (*engine, "use_distributed_optimizer"), f"{section}.use_distributed_optimizer"
        )
    mapped.take(tree, (*engine, "use_megatron_fsdp"), "ddp.use_megatron_fsdp")
    mapped.take_all(tree, (*engine, "override_transformer_config"), "model")
    mapped.take_all(tree, (*engine, "override_ddp_config"), "ddp")
    optim = ("optim",) if engine == ("engine",) else (*_ACTOR, "optim")
    mapped.take_all(tree, (*optim, "override_optimizer_config"), "optimizer")
    return settings_of(tree, mapped, _launch(tree, launch), _origin(tree, engine), others, reading)


def _engine(tree: Tree) -> Keys:
    """The keys that lead to Megatron's settings.

    Raises:
        InputError: verl trains with another engine.
    """
    for engine in ((*_ACTOR, "megatron"), ("engine",)):
        if tree.under(*engine) and tree.get(*_ACTOR, "strategy") in (None, "megatron"):
            return engine
    strategy = tree.get(*_ACTOR, "strategy")
    place = tree.place(*_ACTOR, "strategy") if strategy else tree.place(*_ACTOR)
    if strategy == "megatron" or "megatron" in str(tree.get("config_name") or ""):
        return (*_ACTOR, "megatron")
    raise InputError(
        f"{place.in_messages}: this is verl's configuration, and the actor trains with "
        f"{strategy or 'FSDP (its default)'}, not with Megatron-Core: no setting of Megatron "
        "applies; look at it with overlapkit trace"
    )


def _model(tree: Tree, engine: Keys, mapped: Mapped) -> None:
    """What verl derives from its own keys."""
    tp = tree.get(*engine, "tensor_model_parallel_size") or 1
    asked = tree.get(*engine, "sequence_parallel")
    if asked is not None:
        # verl switches it off where one rank has the whole tensor.
        place = tree.place(*engine, "sequence_parallel")
        mapped.set("model.sequence_parallel", bool(asked) and tp != 1, place)
    else:
        mapped.defaults["model.sequence_parallel"] = tp != 1
    chunks = tree.get(*engine, "virtual_pipeline_model_parallel_size")
    mapped.defaults["model.overlap_p2p_comm"] = type(chunks) is int and chunks > 1
    number = tree.get(*engine, "dtype") or "bfloat16"
    dtype = "torch.float16" if number in ("float16", "fp16") else "torch.bfloat16"
    for section in ("model", "optimizer"):
        mapped.defaults[f"{section}.bf16"] = dtype == "torch.bfloat16"
        mapped.defaults[f"{section}.fp16"] = dtype == "torch.float16"
        mapped.defaults[f"{section}.params_dtype"] = dtype
    mapped.defaults["model.pipeline_dtype"] = dtype
    experts = tree.get(*engine, "expert_model_parallel_size")
    if type(experts) is int and experts > 1:
        mapped.defaults["model.num_moe_experts"] = experts


def _launch(tree: Tree, launch: Launch | None) -> Launch:
    size = product(tree.get("trainer", "nnodes"), tree.get("trainer", "n_gpus_per_node"))
    unknown = f"{tree.path}: trainer.nnodes and trainer.n_gpus_per_node do not both state numbers"
    found = launch or Launch({})
    if CONNECTIONS not in found.environment:
        found = replace(
            found,
            environment_source=found.environment_source or found.source or tree.path,
            fallback={CONNECTIONS: "1"},
            origins={CONNECTIONS: "verl's constants_ppo.py"},
            whole=found.whole and found.source is not None,
        )
    size = size or found.world_size
    return replace(found, world_size=size, world_size_unknown="" if size else unknown)


def _origin(tree: Tree, engine: Keys) -> Origin:
    remarks = [
        f"this is verl's configuration: it builds Megatron-Core's from {'.'.join(engine)}; the "
        "rules of Megatron-Core are applied as Megatron-Bridge has them, and verl's own checks "
        "differ",
        "the defaults are verl's (megatron.yaml, 0b8f32c718; megatron_utils.py, 000e658205): "
        "gradients reduced in FP32 without overlap, variable sequence lengths, point-to-point "
        f"overlap with interleaving alone; it sets {CONNECTIONS}=1 for its workers where nothing "
        "else does (0.5.0)",
        "the model comes from actor_rollout_ref.model.path, which is not read; give its sizes as "
        "overrides (model.num_layers=36)",
    ]
    if tree.get("defaults") is not None:
        remarks.append("defaults names other files, which are not read")
    if (tree.get(*engine, "expert_model_parallel_size") or 1) != 1:
        remarks.append("expert parallelism: the model is taken to have experts")
    return Origin(NAME, tuple(remarks))
