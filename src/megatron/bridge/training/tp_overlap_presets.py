"""The userbuffers presets: tensor-parallel overlap settings per GPU, model width and shape.

A preset's name says what it was tuned for; `parse_preset_name` reads it. The names and values are
those of NVIDIA's Megatron-Bridge 0.3 (Apache-2.0).

The presets are shared objects: to change one, take a copy with `get_preset`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.near_names import near_names
from megatron.bridge.training.userbuffers.settings import (
    BulkOverlapCfg,
    PipelineOverlapCfg,
    RingExchangeOverlapCfg,
    TPOverlapCfg,
    TransformerLayerTPOverlapCfg,
    as_te_dict,
)

__all__ = [
    "userbuffers_bf16_b200_h6144_tp2_mbs1_seqlen4096",
    "userbuffers_bf16_b200_h8192_tp2_mbs1_seqlen8192",
    "userbuffers_bf16_b200_h12288_tp4_mbs1_seqlen2048",
    "userbuffers_bf16_b200_h16384_tp4_cp2_mbs1_seqlen8192",
    "userbuffers_bf16_b200_h18432_tp8_mbs1_seqlen4096",
    "userbuffers_bf16_h100_h6144_tp2_mbs2_seqlen2048",
    "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192",
    "userbuffers_bf16_h100_h12288_tp4_mbs1_seqlen2048",
    "userbuffers_bf16_h100_h16384_tp8_cp2_mbs1_seqlen8192",
    "userbuffers_fp8_b200_h8192_tp2_mbs1_seqlen8192",
    "userbuffers_fp8_b200_h12288_tp4_mbs1_seqlen2048",
    "userbuffers_fp8_b200_h16384_tp4_cp2_mbs1_seqlen8192",
    "userbuffers_fp8_b200_h18432_tp8_mbs1_seqlen4096",
    "userbuffers_fp8_h100_h6144_tp2_mbs2_seqlen2048",
    "userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora",
    "userbuffers_fp8_h100_h8192_tp4_mbs1_seqlen8192",
    "userbuffers_fp8_h100_h12288_tp4_mbs1_seqlen2048",
    "userbuffers_fp8_h100_h16384_tp4_mbs1_seqlen2048_lora",
    "userbuffers_fp8_h100_h16384_tp8_cp2_mbs1_seqlen8192",
]


def _bulk(num_sm: int) -> BulkOverlapCfg:
    return BulkOverlapCfg(num_sm=num_sm, cga_size=2, set_sm_margin=False)


def _pipeline(num_sm: int, *, fp8_buf: bool = False) -> PipelineOverlapCfg:
    return PipelineOverlapCfg(
        num_sm=num_sm, cga_size=2, num_splits=4, set_sm_margin=True, fp8_buf=fp8_buf
    )


_ring = RingExchangeOverlapCfg


def _layer(
    *,
    qkv_dgrad: TPOverlapCfg,
    qkv_wgrad: TPOverlapCfg | None,
    fc1_dgrad: TPOverlapCfg,
    fc1_wgrad: TPOverlapCfg | None,
    proj_fprop: TPOverlapCfg,
    fc2_fprop: TPOverlapCfg,
    gather: RingExchangeOverlapCfg | None = None,
) -> TransformerLayerTPOverlapCfg:
    """A layer whose four GEMMs on an all-gathered input each get their own copy of `gather`."""
    gather = gather or _ring()
    return TransformerLayerTPOverlapCfg(
        qkv_dgrad=qkv_dgrad,
        qkv_wgrad=qkv_wgrad,
        fc1_dgrad=fc1_dgrad,
        fc1_wgrad=fc1_wgrad,
        qkv_fprop=replace(gather),
        proj_dgrad=replace(gather),
        fc1_fprop=replace(gather),
        fc2_dgrad=replace(gather),
        proj_fprop=proj_fprop,
        fc2_fprop=fc2_fprop,
    )


userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(4),
    qkv_wgrad=_bulk(24),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(4),
    proj_fprop=_pipeline(24),
    fc2_fprop=_pipeline(16),
)

userbuffers_fp8_h100_h8192_tp4_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(4),
    qkv_wgrad=_bulk(24),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(4),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_bf16_b200_h8192_tp2_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(16),
    qkv_wgrad=_bulk(24),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(4),
    proj_fprop=_pipeline(32),
    fc2_fprop=_pipeline(16),
)

userbuffers_fp8_b200_h8192_tp2_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(4),
    qkv_wgrad=_bulk(24),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(4),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_bf16_h100_h16384_tp8_cp2_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(2),
    qkv_wgrad=_bulk(24),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(2),
    proj_fprop=_pipeline(24),
    fc2_fprop=_pipeline(8),
)

userbuffers_fp8_h100_h16384_tp8_cp2_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(2),
    qkv_wgrad=_bulk(24),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(2),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_bf16_b200_h16384_tp4_cp2_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(8),
    qkv_wgrad=_bulk(24),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(2),
    proj_fprop=_pipeline(32),
    fc2_fprop=_pipeline(8),
)

userbuffers_fp8_b200_h16384_tp4_cp2_mbs1_seqlen8192 = _layer(
    qkv_dgrad=_bulk(8),
    qkv_wgrad=_bulk(32),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(8),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora = _layer(
    qkv_dgrad=_bulk(2),
    qkv_wgrad=None,
    fc1_dgrad=_pipeline(16, fp8_buf=True),
    fc1_wgrad=None,
    proj_fprop=_ring(cga_size=2, fp8_buf=True, set_sm_margin=True),
    fc2_fprop=_ring(cga_size=2, fp8_buf=True, set_sm_margin=True),
    gather=_ring(set_sm_margin=True),
)

userbuffers_fp8_h100_h16384_tp4_mbs1_seqlen2048_lora = _layer(
    qkv_dgrad=_bulk(2),
    qkv_wgrad=None,
    fc1_dgrad=_pipeline(16, fp8_buf=True),
    fc1_wgrad=None,
    proj_fprop=_pipeline(32, fp8_buf=True),
    fc2_fprop=_pipeline(16, fp8_buf=True),
    gather=_ring(aggregate=True),
)

userbuffers_bf16_h100_h6144_tp2_mbs2_seqlen2048 = _layer(
    qkv_dgrad=_bulk(8),
    qkv_wgrad=_bulk(16),
    fc1_dgrad=_bulk(4),
    fc1_wgrad=_bulk(16),
    proj_fprop=_pipeline(16),
    fc2_fprop=_pipeline(24),
)

userbuffers_fp8_h100_h6144_tp2_mbs2_seqlen2048 = _layer(
    qkv_dgrad=_bulk(8),
    qkv_wgrad=_bulk(16),
    fc1_dgrad=_bulk(4),
    fc1_wgrad=_bulk(16),
    proj_fprop=_pipeline(16, fp8_buf=True),
    fc2_fprop=_pipeline(24, fp8_buf=True),
)

userbuffers_bf16_h100_h12288_tp4_mbs1_seqlen2048 = _layer(
    qkv_dgrad=_bulk(4),
    qkv_wgrad=_bulk(4),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(4),
    proj_fprop=_pipeline(24),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_fp8_h100_h12288_tp4_mbs1_seqlen2048 = _layer(
    qkv_dgrad=_bulk(4),
    qkv_wgrad=_bulk(4),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(4),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_bf16_b200_h12288_tp4_mbs1_seqlen2048 = _layer(
    qkv_dgrad=_bulk(4),
    qkv_wgrad=_bulk(16),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(8),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_fp8_b200_h12288_tp4_mbs1_seqlen2048 = _layer(
    qkv_dgrad=_bulk(4),
    qkv_wgrad=_bulk(16),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(8),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_bf16_b200_h6144_tp2_mbs1_seqlen4096 = _layer(
    qkv_dgrad=_bulk(8),
    qkv_wgrad=_bulk(32),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(8),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)

userbuffers_bf16_b200_h18432_tp8_mbs1_seqlen4096 = _layer(
    qkv_dgrad=_bulk(8),
    qkv_wgrad=_bulk(32),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(8),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_pipeline(24),
)

userbuffers_fp8_b200_h18432_tp8_mbs1_seqlen4096 = _layer(
    qkv_dgrad=_bulk(8),
    qkv_wgrad=_bulk(32),
    fc1_dgrad=_bulk(2),
    fc1_wgrad=_bulk(8),
    proj_fprop=_ring(set_sm_margin=True),
    fc2_fprop=_ring(set_sm_margin=True),
)


PRESETS: Mapping[str, TransformerLayerTPOverlapCfg] = MappingProxyType(
    {name: globals()[name] for name in __all__}
)
"""Every preset by name. The values are shared: change a copy."""

# Compiled at its first use, not at import.
_NAME = (
    r"userbuffers_(?P<precision>[a-z0-9]+)_(?P<gpu>[a-z0-9]+)_h(?P<h>[1-9][0-9]*)"
    r"_tp(?P<tp>[1-9][0-9]*)(_cp(?P<cp>[1-9][0-9]*))?_mbs(?P<mbs>[1-9][0-9]*)"
    r"_seqlen(?P<seq>[1-9][0-9]*)(?P<lora>_lora)?"
)


@dataclass(frozen=True)
class PresetKey:
    """What a preset was tuned for.

    Attributes:
        precision: of the GEMMs, "bf16" or "fp8".
        gpu: in lower case, "h100" or "b200".
        hidden_size: width of the model.
        tensor_parallel_size: GPUs that share a layer.
        context_parallel_size: GPUs that share a sequence; not in the name where it is 1.
        micro_batch_size: sequences per microbatch.
        seq_length: tokens per sequence, before context parallelism divides it.
        lora: whether it is for fine-tuning with LoRA, where frozen weights have no wgrad.
    """

    precision: str
    gpu: str
    hidden_size: int
    tensor_parallel_size: int
    context_parallel_size: int
    micro_batch_size: int
    seq_length: int
    lora: bool

    @property
    def name(self) -> str:
        """The preset's name; `parse_preset_name` is the inverse."""
        cp = f"_cp{self.context_parallel_size}" if self.context_parallel_size != 1 else ""
        return (
            f"userbuffers_{self.precision}_{self.gpu}_h{self.hidden_size}"
            f"_tp{self.tensor_parallel_size}{cp}_mbs{self.micro_batch_size}"
            f"_seqlen{self.seq_length}{'_lora' if self.lora else ''}"
        )


def preset_names() -> list[str]:
    """The names of all presets."""
    return list(PRESETS)


def parse_preset_name(name: str) -> PresetKey:
    """What a preset of this name is for, whether or not it exists.

    Raises:
        ValueError: `name` is not of the form
            ``userbuffers_<precision>_<gpu>_h<n>_tp<n>[_cp<n>]_mbs<n>_seqlen<n>[_lora]``.
    """
    found = re.fullmatch(_NAME, name)
    if found is None or found["cp"] == "1":
        raise ValueError(
            f"{name!r} is not a preset's name; the form is userbuffers_<precision>_<gpu>"
            "_h<n>_tp<n>[_cp<n>]_mbs<n>_seqlen<n>[_lora], with _cp<n> only where n > 1"
        )
    return PresetKey(
        precision=found["precision"],
        gpu=found["gpu"],
        hidden_size=int(found["h"]),
        tensor_parallel_size=int(found["tp"]),
        context_parallel_size=int(found["cp"] or 1),
        micro_batch_size=int(found["mbs"]),
        seq_length=int(found["seq"]),
        lora=found["lora"] is not None,
    )


def get_preset(name: str) -> TransformerLayerTPOverlapCfg:
    """A copy of the preset of this name, which the caller may change.

    Raises:
        OverlapConfigError: there is none; the message lists the nearest names.
    """
    if name in PRESETS:
        return copy.deepcopy(PRESETS[name])
    close = near_names(name, PRESETS, most=3, cutoff=0.5) or list(PRESETS)
    raise OverlapConfigError(
        f"no userbuffers preset is named {name!r}; nearest: {', '.join(close)}"
    )


def presets_like(cfg: object) -> list[PresetKey]:
    """What the presets with exactly these settings are tuned for: none, one or several."""
    given = _settings(as_te_dict(cfg))
    return [
        parse_preset_name(name)
        for name, preset in PRESETS.items()
        if cfg == preset or given == _settings_of(name)
    ]


@cache
def _settings_of(name: str) -> dict[str, dict[str, Any]]:
    # As `as_te_dict` gives it, only faster: a preset consists of plain dataclasses.
    return _settings(
        {
            gemm: {key: value for key, value in vars(cfg).items() if value is not None}
            for gemm, cfg in vars(PRESETS[name]).items()
            if cfg is not None
        }
    )


def _settings(gemms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    # Megatron-Bridge writes an fp8_buf of False as the list [False].
    return {
        gemm: {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in entry.items()}
        for gemm, entry in gemms.items()
        if isinstance(entry, dict)
    }


def find_preset(
    *,
    precision: str,
    gpu: str,
    hidden_size: int,
    tensor_parallel_size: int,
    context_parallel_size: int = 1,
    micro_batch_size: int,
    seq_length: int,
    lora: bool = False,
) -> TransformerLayerTPOverlapCfg | None:
    """A copy of the preset tuned for exactly this, or None; the arguments are `PresetKey`'s."""
    key = PresetKey(
        precision,
        gpu,
        hidden_size,
        tensor_parallel_size,
        context_parallel_size,
        micro_batch_size,
        seq_length,
        lora,
    )
    return copy.deepcopy(PRESETS.get(key.name))
