"""What a search may change beside the division: recomputation and the exchange of CP ranks."""

from __future__ import annotations

from collections.abc import Mapping
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
