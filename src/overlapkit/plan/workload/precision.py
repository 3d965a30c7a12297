"""What a precision recipe costs: which rate a GEMM runs at, how many bytes an element takes.

Quantizing for FP8 and FP4 is work for the memory: a tensor is read to find its scale, read again
and written in the small format, once for GEMMs along rows and once for those along columns. How
often depends on the recipe (Transformer Engine's documentation, "Using FP8 and FP4 with Transformer
Engine").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Precision:
    """One way of computing the linear layers.

    Attributes:
        name: "bf16", "fp8 delayed", "fp8 current", "fp8 blockwise", "mxfp8", "nvfp4", "fp32".
        rate: which peak rate its GEMMs run at: "bf16", "fp8", "mxfp8", "nvfp4" or "fp32".
        operand_bytes: of one element of a GEMM's operand.
        quantize_bytes: moved by memory to quantize one activation element, beyond what the kernel
            that made it writes anyway; 0 where nothing is quantized.
        gather_bytes: of one element of an activation that tensor-parallel ranks gather.
    """

    name: str
    rate: str
    operand_bytes: float
    quantize_bytes: float
    gather_bytes: float


FP32 = Precision("fp32", "fp32", 4, 0, 4)
BF16 = Precision("bf16", "bf16", 2, 0, 2)
# The scale comes from earlier steps, so the kernel that makes the tensor casts it: only the copy
# for the other direction is written on top.
FP8_DELAYED = Precision("fp8 delayed", "fp8", 1, 1, 1)
# One read for the largest magnitude, one to cast, two copies written.
FP8_CURRENT = Precision("fp8 current", "fp8", 1, 2 + 2 + 2, 1)
# A block of 128 has its scale within one kernel: one read, two copies written, and fp32 scales.
FP8_BLOCKWISE = Precision("fp8 blockwise", "fp8", 1, 2 + 2 + 2 * 4 / 128, 1)
# The same with a one-byte scale for 32 elements, which is gathered with them.
MXFP8 = Precision("mxfp8", "mxfp8", 1 + 1 / 32, 2 + 2 + 2 / 32, 1 + 1 / 32)
# One read for the tensor's scale, one to cast, two half-byte copies with a scale for 16 elements.
NVFP4 = Precision("nvfp4", "nvfp4", 0.5 + 1 / 16, 2 + 2 + 1 + 2 / 16, 0.5 + 1 / 16)

_FP8_RECIPES = {
    "delayed": FP8_DELAYED,
    "tensorwise": FP8_CURRENT,
    "blockwise": FP8_BLOCKWISE,
    "mxfp8": MXFP8,
}
PRECISIONS = {p.name: p for p in (FP32, BF16, *_FP8_RECIPES.values(), NVFP4)}


def base_precision(model: Any) -> Precision:
    """What everything but the linear layers inside the transformer is computed in."""
    return BF16 if getattr(model, "bf16", False) or getattr(model, "fp16", False) else FP32


def linear_precision(model: Any) -> Precision:
    """What the linear layers are computed in, but for those that the recipe leaves in BF16."""
    if getattr(model, "fp4", None):
        return NVFP4
    if getattr(model, "fp8", None):
        # A recipe of the user's own ("custom") quantizes like current scaling, by default.
        return _FP8_RECIPES.get(str(getattr(model, "fp8_recipe", "delayed")), FP8_CURRENT)
    return base_precision(model)


def layer_precisions(model: Any, layers: int) -> list[Precision]:
    """The linear layers' precision in each transformer layer: the first and last may stay BF16."""
    low, base = linear_precision(model), base_precision(model)
    first = last = 0
    if getattr(model, "first_last_layers_bf16", False):
        first = getattr(model, "num_layers_at_start_in_bf16", 0) or 0
        last = getattr(model, "num_layers_at_end_in_bf16", 0) or 0
    return [low if first <= layer < layers - last else base for layer in range(layers)]
