"""What a search may change beside the division: recomputation, the exchange of CP ranks, and where
memory needs it FSDP, offloading and the precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NONE = "none"
"""Nothing is recomputed."""
FULL = "full"
"""The forward of every layer is computed again, from its input alone."""
RING, BY_HEADS = "p2p", "a2a"
"""Values of cp_comm_type: keys and values go round a ring, or heads are exchanged for tokens."""

_DISCARDED = ("moe_act", "layernorm", "mla_up_proj")
"""Modules whose output is discarded and made again within the backward of the next one. Their input
is then quantized twice, which delayed scaling does not allow (megatron-core 0.16,
core/transformer/transformer_config.py)."""


def recompute_choices(model: Any) -> tuple[str, ...]:
    """What may be recomputed in a model, from the cheapest: the modules that keep most memory.

    The experts' activation is recomputed only with grouped GEMMs, and what multi-latent attention
    projects up only in models that have it (megatron-core 0.16,
    core/transformer/transformer_config.py).
    """
    choices = [NONE]
    delayed = getattr(model, "fp8", None) and getattr(model, "fp8_recipe", "delayed") == "delayed"
    experts = bool(model.num_moe_experts)
    light = []
    if experts and getattr(model, "moe_grouped_gemm", False) and not delayed:
        light.append("moe_act")
    if getattr(model, "multi_latent_attention", False) and not delayed:
        light.append("mla_up_proj")
    if light:
        choices.append(",".join(light))
    choices.append("core_attn")
    choices.append("moe" if experts else "mlp")
    return (*choices, FULL)


def recompute_of_model(model: Mapping[str, Any]) -> str:
    """What a model section recomputes, as `LayoutChoice.recompute`."""
    granularity = model.get("recompute_granularity")
    if granularity is None:
        return NONE
    if granularity == FULL:
        if model.get("recompute_method") == "block":
            return f"{FULL} of {model.get('recompute_num_layers')} layers of a chunk"
        return FULL
    modules = model.get("recompute_modules")
    return ",".join(["core_attn"] if modules is None else list(modules))


def recompute_changes(choice: str) -> dict[str, Any]:
    """The keys of a model section that recompute what a choice says."""
    if choice == NONE:
        return {
            "recompute_granularity": None,
            "recompute_method": None,
            "recompute_num_layers": None,
        }
    if choice == FULL:
        return {
            "recompute_granularity": FULL,
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    return {
        "recompute_granularity": "selective",
        "recompute_method": None,
        "recompute_num_layers": None,
        "recompute_modules": choice.split(","),
    }


def cp_comm_choices(cp: int, heads: int, groups: float) -> list[str]:
    """How ranks may exchange keys and values.

    Args:
        cp: ranks.
        heads, groups: of a tensor-parallel rank, which an exchange of heads must divide.
    """
    if cp > 1 and heads % cp == 0 and groups % cp == 0:
        return [RING, BY_HEADS]
    return [RING]


def cp_comm_of(model: Mapping[str, Any]) -> str:
    """cp_comm_type of a model section; one that differs by layer as a list of its values."""
    kind = model.get("cp_comm_type") or RING
    return kind if isinstance(kind, str) else ",".join(map(str, kind))


def cp_comm_changes(choice: str) -> dict[str, Any]:
    """The keys of a model section for a kind of exchange."""
    return {"cp_comm_type": choice}


@dataclass(frozen=True)
class Saving:
    """A way of saving memory that costs time, and is tried where no layout fits without.

    Attributes:
        name: as it is shown.
        settings: the keys that turn it on, dotted, with their values. A number of layers that is
            None stands for all but one.
        whole_layers: whether it needs a model without a pipeline.
        recomputes: whether it allows recomputation.
    """

    name: str
    settings: Mapping[str, Any]
    whole_layers: bool = False
    recomputes: bool = True


FSDP = Saving(
    "FSDP",
    {
        "ddp.use_megatron_fsdp": True,
        "ddp.data_parallel_sharding_strategy": "optim_grads_params",
    },
    # Published recipes have none with it.
    whole_layers=True,
)
OPTIMIZER_OFFLOAD = Saving(
    "optimizer on the host",
    {
        "optimizer.optimizer_cpu_offload": True,
        "optimizer.optimizer_offload_fraction": 1.0,
        "optimizer.overlap_cpu_optimizer_d2h_h2d": True,
        # Megatron-LM's arguments demand it.
        "optimizer.use_precision_aware_optimizer": True,
    },
)
ACTIVATION_OFFLOAD = Saving(
    "activations on the host",
    {"model.cpu_offloading": True, "model.cpu_offloading_num_layers": None},
    # Megatron-Core refuses both (core/transformer/transformer_config.py).
    whole_layers=True,
    recomputes=False,
)
SAVINGS = {one.name: one for one in (FSDP, OPTIMIZER_OFFLOAD, ACTIVATION_OFFLOAD)}
"""By name. Whether FSDP works together with the others is not known: it is tried alone."""
_TIERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((FSDP.name,), (OPTIMIZER_OFFLOAD.name,), (ACTIVATION_OFFLOAD.name,)),
    ((OPTIMIZER_OFFLOAD.name, ACTIVATION_OFFLOAD.name),),
)


def saving_tiers(
    run: Any, asked: frozenset[str], gpu_has_host: bool, lower: str | None
) -> list[list[tuple[str, ...]]]:
    """What to try where memory is short: each list only if nothing of those before it fits.

    Args:
        run: whose settings are searched.
        asked: keys that were set explicitly: what they say is not changed.
        gpu_has_host: whether the time of offloading is known.
        lower: a recipe of mixed_precision with smaller numbers, if the precision may be changed.
    """
    hosted = {OPTIMIZER_OFFLOAD.name, ACTIVATION_OFFLOAD.name}

    def possible(names: tuple[str, ...]) -> bool:
        keys = {key for name in names for key in SAVINGS[name].settings}
        sharded = getattr(run.ddp, "use_distributed_optimizer", False)
        return (
            bool(sharded)
            and not keys & asked
            and (gpu_has_host or not hosted & set(names))
            and not (FSDP.name in names and getattr(run.ddp, "use_megatron_fsdp", False))
        )

    tiers = [[names for names in tier if possible(names)] for tier in _TIERS]
    if lower is not None:
        every = [names for tier in tiers for names in tier]
        tiers.append([(lower,), *((*names, lower) for names in every)])
    return [tier for tier in tiers if tier]


def allows(names: tuple[str, ...], *, pp: int, recompute: str) -> bool:
    """Whether a layout with so many stages, that recomputes this, can save memory in these ways."""
    found = [SAVINGS[name] for name in names if name in SAVINGS]
    return not any(
        (one.whole_layers and pp > 1) or (not one.recomputes and recompute != NONE) for one in found
    )


def saving_settings(names: tuple[str, ...], layers: int) -> dict[str, Any]:
    """The keys, dotted, that save memory in these ways.

    Args:
        names: of `SAVINGS`, or a recipe of mixed_precision.
        layers: of the model.
    """
    found: dict[str, Any] = {}
    for name in names:
        if name not in SAVINGS:
            found["mixed_precision"] = name
            continue
        for key, value in SAVINGS[name].settings.items():
            found[key] = max(layers - 1, 1) if value is None else value
    return found
