"""How many bytes an element of a gradient or a parameter has when data-parallel ranks exchange it.

Facts of megatron-core 0.16's `ParamAndGradBuffer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ElementBytes:
    """Bytes of one element on the wire.

    Attributes:
        gradient: as reduced.
        parameter: as gathered, where it is not kept in FP8.
        fp8_parameter: as gathered, where it is kept in FP8; None where the size is not known.
    """

    gradient: int
    parameter: int
    fp8_parameter: int | None


def element_bytes(model: Any, ddp: Any) -> ElementBytes:
    """The sizes for a run whose configurations are effective.

    Args:
        model: an object with the attribute names of `TransformerConfig`.
        ddp: an object with those of `DistributedDataParallelConfig`.
    """
    half = bool(getattr(model, "bf16", False) or getattr(model, "fp16", False))
    size = 2 if half else 4
    gradient = 4 if getattr(ddp, "grad_reduce_in_fp32", False) else size
    # MXFP8 needs copies in both directions, so parameters are sent in BF16 through the gradient
    # buffer (reuse_grad_buf_for_mxfp8_param_ag).
    small = bool(getattr(ddp, "fp8_param_gather", False)) and not getattr(
        ddp, "reuse_grad_buf_for_mxfp8_param_ag", False
    )
    # How NVFP4 weights lie in the buffer that is gathered was not looked at.
    unknown = bool(getattr(ddp, "fp4_param_gather", False))
    return ElementBytes(gradient, size, None if unknown else 1 if small else size)
