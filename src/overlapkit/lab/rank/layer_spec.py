"""Megatron-Core's own layers with a normalization that works under sequence parallelism.

Without Apex and Transformer Engine, Megatron-Core 0.16 falls back to torch's normalization and then
refuses sequence parallelism, because its parameters are not marked. Each tensor-parallel rank sees
only its part of the sequence, and `finalize_model_grads` sums the gradients of marked parameters.
The normalization here marks its parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules


class TorchNorm:
    """torch's LayerNorm or RMSNorm, as configured, with marked parameters."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        of_type = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = of_type(hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm


def _own_norm(
    self: LocalSpecProvider, rms_norm: bool = False, for_qk: bool = False
) -> type[TorchNorm]:
    """Stands for `LocalSpecProvider.layer_norm`: the configuration says which normalization."""
    return TorchNorm


# The layers of multi-token prediction take their normalizations from it, past the spec below.
LocalSpecProvider.layer_norm = _own_norm


def own_layer_spec(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this rank's model chunk, built from Megatron-Core's own modules."""
    spec = get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=False,
        normalization=config.normalization,
        qk_l2_norm=config.qk_l2_norm,
        vp_stage=vp_stage,
    )
    return _with_norm(spec)


def _with_norm(spec: Any) -> Any:
    """The spec with every fallback normalization replaced."""
    if spec is WrappedTorchNorm:
        return TorchNorm
    if isinstance(spec, list):
        return [_with_norm(part) for part in spec]
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        changed = {
            f.name: _with_norm(getattr(spec, f.name))
            for f in dataclasses.fields(spec)
            if not isinstance(getattr(spec, f.name), dict)
        }
        return dataclasses.replace(spec, **changed)
    return spec
