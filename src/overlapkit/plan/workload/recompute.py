"""What the backward computes again to save memory (activation recomputation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.layer_blocks import ATTENTION, EXPERTS
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
"""recompute_modules of Megatron-Core 0.16, with the linear layers whose forward each repeats.
Repeating an activation or a norm is memory traffic of a few percent, which is not counted."""


@dataclass(frozen=True)
class Recompute:
    """What the backward computes again.

    Attributes:
        full_layers: share of the layers whose entire forward is repeated, from 0 to 1.
        gemms: linear layers whose forward is repeated in every layer.
        attention: whether attention is repeated in every layer.
        modules: the names as configured.
    """

    full_layers: float = 0.0
    gemms: tuple[str, ...] = ()
    attention: bool = False
    modules: tuple[str, ...] = ()


def recompute_of(model: Any, layout: Layout, blocks: str) -> Recompute:
    """How a layer with these blocks is recomputed.

    Raises:
        InputError: an unknown granularity, method or module, or an impossible number of layers.
    """
    granularity = getattr(model, "recompute_granularity", None)
    if granularity is None:
        return Recompute()
    if granularity == "full":
        method = getattr(model, "recompute_method", None)
        if method == "uniform":
            return Recompute(full_layers=1.0)
        if method != "block":
            raise InputError(
                f"model.recompute_method={method!r}: recompute_granularity=full needs uniform or "
                "block"
            )
        # The first layers of every chunk.
        most = getattr(model, "recompute_num_layers", None) or 0
        if most < 0:
            raise InputError(f"model.recompute_num_layers={most}: must be 0 or more")
        chunks = [len(part.layers) for row in layout.parts for part in row]
        return Recompute(full_layers=sum(min(most, n) for n in chunks) / sum(chunks))
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
    # "mlp" means dense feed-forward blocks, "moe" experts.
    other = "mlp" if EXPERTS in blocks else "moe"
    own = [m for m in modules if m != other]
    return Recompute(
        gemms=tuple(dict.fromkeys(gemm for m in own for gemm in SELECTIVE[m])),
        attention="core_attn" in modules and ATTENTION in blocks,
        modules=tuple(modules),
    )
