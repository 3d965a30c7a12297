"""What the backward computes again to save memory (activation recomputation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overlapkit.errors import InputError
from overlapkit.plan.workload.layout import Layout

SELECTIVE = {
    "core_attn": (),
    "mlp": ("fc1", "fc2"),
    "moe": ("router", "experts fc1", "experts fc2", "shared fc1", "shared fc2"),
    "shared_experts": ("shared fc1", "shared fc2"),
    "mla_up_proj": ("q up", "kv up"),
    "moe_act": (),
    "layernorm": (),
}
"""recompute_modules of Megatron-Core 0.16, with the linear layers whose forward each repeats. That
of activation and norm is memory traffic of a few percent, and not counted."""


@dataclass(frozen=True)
class Recompute:
    """What is done again.

    Attributes:
        whole_layers: share of the layers whose whole forward is repeated, from 0 to 1.
        gemms: linear layers whose forward is repeated in every layer.
        attention: whether attention itself is.
        modules: the names as configured.
    """

    whole_layers: float = 0.0
    gemms: tuple[str, ...] = ()
    attention: bool = False
    modules: tuple[str, ...] = ()


def recompute_of(model: Any, layout: Layout, *, moe: bool) -> Recompute:
    """How a layer of a kind is recomputed.

    Raises:
        InputError: an unknown granularity, method or module.
    """
    granularity = getattr(model, "recompute_granularity", None)
    if granularity is None:
        return Recompute()
    if granularity == "full":
        method = getattr(model, "recompute_method", None)
        if method == "uniform":
            return Recompute(whole_layers=1.0)
        if method != "block":
            raise InputError(
                f"model.recompute_method={method!r}: recompute_granularity=full needs uniform or "
                "block"
            )
        # The first layers of every chunk.
        asked = getattr(model, "recompute_num_layers", None) or 0
        chunks = [len(chunk) for row in layout.chunk_layers for chunk in row]
        return Recompute(whole_layers=sum(min(asked, n) for n in chunks) / sum(chunks))
    if granularity != "selective":
        raise InputError(
            f"model.recompute_granularity={granularity!r}: want full, selective or null"
        )
    modules = getattr(model, "recompute_modules", None)
    modules = ["core_attn"] if modules is None else list(modules)
    for module in modules:
        if module not in SELECTIVE:
            raise InputError(
                f"model.recompute_modules: unknown {module!r}; known are {', '.join(SELECTIVE)}"
            )
    # "mlp" stands for dense feed-forward blocks alone, the moe ones for experts.
    held = [m for m in modules if m != ("mlp" if moe else "moe")]
    return Recompute(
        gemms=tuple(dict.fromkeys(gemm for m in held for gemm in SELECTIVE[m])),
        attention="core_attn" in modules,
        modules=tuple(modules),
    )
