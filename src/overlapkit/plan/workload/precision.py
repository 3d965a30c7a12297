"""What a precision recipe costs: the rate of a GEMM, and the bytes of an element.

Quantizing to FP8 or FP4 is bound by memory: a tensor is read to find its scale, then read again and
written in the small format, once for GEMMs along rows and once for those along columns. How many
passes that takes depends on the recipe (Transformer Engine's documentation, "Using FP8 and FP4 with
Transformer Engine").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One way of computing the linear layers.

    Attributes:
        name: "bf16", "fp8 delayed", "fp8 current", "fp8 blockwise", "mxfp8", "nvfp4", "fp32".
        rate: which peak rate its GEMMs run at: "bf16", "fp8", "mxfp8", "nvfp4" or "fp32".
        operand_bytes: bytes of one element of a GEMM's operand.
        quantize_bytes: bytes of memory traffic to quantize one activation element, beyond what the
            kernel that made it writes anyway; 0 where nothing is quantized.
        gather_bytes: bytes of one element of an activation that tensor-parallel ranks gather.
    """

    name: str
    rate: str
    operand_bytes: float
    quantize_bytes: float
    gather_bytes: float


FP32 = Precision(name="fp32", rate="fp32", operand_bytes=4, quantize_bytes=0, gather_bytes=4)
BF16 = Precision(name="bf16", rate="bf16", operand_bytes=2, quantize_bytes=0, gather_bytes=2)
FP8_DELAYED = Precision(
    name="fp8 delayed",
    rate="fp8",
    operand_bytes=1,
    # The scale comes from earlier steps, so the kernel that makes the tensor also casts it. Only
    # the copy for the other direction is written in addition.
    quantize_bytes=1,
    gather_bytes=1,
)
FP8_CURRENT = Precision(
    name="fp8 current",
    rate="fp8",
    operand_bytes=1,
    # One read for the largest magnitude, one to cast, two copies written.
    quantize_bytes=2 + 2 + 2,
    gather_bytes=1,
)
FP8_BLOCKWISE = Precision(
    name="fp8 blockwise",
    rate="fp8",
    operand_bytes=1,
    # One kernel finds the scale of a block of 128: one read, two copies written, and fp32 scales.
    quantize_bytes=2 + 2 + 2 * 4 / 128,
    gather_bytes=1,
)
MXFP8 = Precision(
    name="mxfp8",
    rate="mxfp8",
    # 32 elements have a one-byte scale, which is gathered with them.
    operand_bytes=1 + 1 / 32,
    quantize_bytes=2 + 2 + 2 / 32,
    gather_bytes=1 + 1 / 32,
)
NVFP4 = Precision(
    name="nvfp4",
    rate="nvfp4",
    operand_bytes=0.5 + 1 / 16,
    # One read for the tensor's scale, one to cast, two half-byte copies with a scale for 16
    # elements.
    quantize_bytes=2 + 2 + 1 + 2 / 16,
    gather_bytes=0.5 + 1 / 16,
)

_FP8_RECIPES = {
    "delayed": FP8_DELAYED,
    "tensorwise": FP8_CURRENT,
    "blockwise": FP8_BLOCKWISE,
    "mxfp8": MXFP8,
}
PRECISIONS = {p.name: p for p in (FP32, BF16, *_FP8_RECIPES.values(), NVFP4)}


def base_precision(model: Any) -> Precision:
    """The precision of everything except the linear layers inside the transformer."""
    return BF16 if getattr(model, "bf16", False) or getattr(model, "fp16", False) else FP32


def linear_precision(model: Any) -> Precision:
    """The precision of the linear layers, except those that the recipe keeps in BF16."""
    if getattr(model, "fp4", None):
        return NVFP4
    if getattr(model, "fp8", None):
        # A recipe of the user's own ("custom") is counted as current scaling.
        return _FP8_RECIPES.get(str(getattr(model, "fp8_recipe", "delayed")), FP8_CURRENT)
    return base_precision(model)


def layer_precisions(model: Any, layers: int) -> list[Precision]:
    """The linear layers' precision in each transformer layer: the first and last can stay BF16."""
    low, base = linear_precision(model), base_precision(model)
    first = last = 0
    if getattr(model, "first_last_layers_bf16", False):
        first = getattr(model, "num_layers_at_start_in_bf16", 0) or 0
        last = getattr(model, "num_layers_at_end_in_bf16", 0) or 0
    return [low if first <= layer < layers - last else base for layer in range(layers)]
