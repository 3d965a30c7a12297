"""Which fused kernels the machine has, for the defaults of the model providers."""

from __future__ import annotations

import importlib
from functools import cache

APEX_KERNEL = "fused_weight_gradient_mlp_cuda"
"""The extension of APEX that adds a weight gradient to main_grad inside the GEMM."""


def can_enable_gradient_accumulation_fusion() -> bool:
    """Whether a kernel is there that accumulates weight gradients inside their GEMM.

    Transformer Engine's modules have their own (Megatron-Bridge counts it since 0.4.2); Megatron-
    Core's own layers use APEX's.
    """
    return _importable("transformer_engine.pytorch") or _importable(APEX_KERNEL)


@cache
def _importable(module: str) -> bool:
    """Whether a module can be imported; determined by importing it, once.

    One that was built for another torch or CUDA fails with an OSError or a RuntimeError.
    """
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return False
    return True
