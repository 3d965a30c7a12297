"""Transformer Engine's userbuffers, which tensor-parallel overlap uses."""

from __future__ import annotations

import os
from typing import Any

_made_for: list[object] = []


def make(model: Any, micro_batch_size: int) -> None:
    """Create the buffers that `model`'s layers use, and destroy those of another shape.

    Args:
        model: a configuration after all rules, with `tp_comm_overlap`; its process groups exist.
        micro_batch_size: sequences of a microbatch, which determine the size of the buffers.

    Raises:
        RuntimeError, ValueError, AssertionError: from Transformer Engine.
    """
    from transformer_engine.pytorch.module import base

    tokens = model.seq_length * micro_batch_size // model.context_parallel_size
    wanted = [
        tokens,
        model.hidden_size,
        model.tensor_model_parallel_size,
        model.tp_comm_overlap_cfg,
    ]
    if _made_for == wanted:
        return
    if _made_for:
        base.destroy_ub()
        _made_for.clear()
    if not base.tex.device_supports_multicast():
        # Also read by Transformer Engine's C++: peers' memory is then accessed through CUDA IPC.
        os.environ["UB_SKIPMC"] = "1"
    base.initialize_ub(
        shape=wanted[:2],
        tp_size=model.tensor_model_parallel_size,
        use_fp8=False,
        ub_cfgs=model.tp_comm_overlap_cfg,
        bootstrap_backend="nccl",
    )
    _made_for.extend(wanted)
