"""The mixed-precision recipes, as data: field values by recipe name, dtypes by name. Torch-free.

Names, fields and values are those of Megatron-Bridge's objects, with what changed between 0.3.1 and
its main branch of 2026-08 in `FIELD_VERSIONS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.near_names import nearest
from megatron.bridge.training.versions import NEWEST, Range, Stack, holds

DTYPE_FIELDS = ("params_dtype", "pipeline_dtype", "autocast_dtype")
"""The fields whose value in a recipe is the name of a torch dtype."""

_HALF: dict[str, dict[str, Any]] = {
    "bf16": {
        "bf16": True,
        "params_dtype": "bfloat16",
        "pipeline_dtype": "bfloat16",
        "autocast_enabled": False,
        "grad_reduce_in_fp32": True,
    },
    "fp16": {
        "fp16": True,
        "params_dtype": "float16",
        "pipeline_dtype": "float16",
        "autocast_enabled": False,
        "grad_reduce_in_fp32": False,
    },
}

_FP8: dict[str, dict[str, Any]] = {
    "fp8_delayed_scaling": {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "fp8_margin": 0,
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        "fp8_param_gather": True,
    },
    "fp8_current_scaling": {
        "fp8": "hybrid",
        "fp8_recipe": "tensorwise",
        "first_last_layers_bf16": True,
        "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 1,
        "fp8_param_gather": True,
    },
    "fp8_subchannel_scaling": {
        "fp8": "hybrid",
        "fp8_recipe": "blockwise",
        "fp8_param_gather": False,
    },
    "mxfp8": {
        "fp8": "e4m3",
        "fp8_recipe": "mxfp8",
        "fp8_param_gather": True,
        "reuse_grad_buf_for_mxfp8_param_ag": True,
    },
}

_NVFP4 = {"fp4": "e2m1", "fp4_recipe": "nvfp4", "fp4_param_gather": True}
_FOUR_LAYERS_IN_BF16 = {"num_layers_at_start_in_bf16": 2, "num_layers_at_end_in_bf16": 2}

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {f"{half}_mixed": base for half, base in _HALF.items()}
    | {
        f"{half}_with_{scaling}_mixed": base | fp8
        for half, base in _HALF.items()
        for scaling, fp8 in _FP8.items()
    }
    | {
        "bf16_with_nvfp4_mixed": _HALF["bf16"] | _NVFP4,
        # Since Megatron-Bridge 0.4.2 (53d40d1bc).
        "nemotron_3_super_bf16_with_nvfp4_mixed": _HALF["bf16"]
        | _NVFP4
        | {"first_last_layers_bf16": True, "num_layers_at_end_in_bf16": 14},
        "nemotron_h_bf16_with_fp8_current_scaling_mixed": _HALF["bf16"]
        | _FP8["fp8_current_scaling"]
        | _FOUR_LAYERS_IN_BF16,
        # Its name says current scaling; the recipe is blockwise all the same.
        "nanov2_bf16_with_fp8_current_scaling_mixed": _HALF["bf16"]
        | _FP8["fp8_current_scaling"]
        | _FOUR_LAYERS_IN_BF16
        | {"fp8_recipe": "blockwise"},
    }
)
"""The field values of each recipe that are not left at their default, dtypes by name."""

FIELD_VERSIONS: Mapping[str, Range] = MappingProxyType(
    dict.fromkeys(("fp4_param", "fp4_param_gather"), Range("bridge", since="0.4.2"))
)
"""The fields that not every version has (Megatron-Bridge ecbd4ead5)."""


def known_recipe_name(name: str, known: Collection[str]) -> str:
    """The key of `known` that `name` means: dashes stand for underscores, as in Megatron-Bridge.

    Raises:
        OverlapConfigError: there is none; the message lists them, with the nearest name.
    """
    key = name.replace("-", "_")
    if key in known:
        return key
    near = nearest(key, known)
    hint = f" Did you mean {near!r}?" if near else ""
    raise OverlapConfigError(
        f"mixed_precision={name!r} is not a known recipe.{hint} Known: {', '.join(known)}."
    )


def mixed_precision_recipe(name: str, stack: Stack = NEWEST) -> dict[str, Any]:
    """A recipe's field values that are not left at their default, dtypes by name: "bfloat16".

    Args:
        name: may be written with dashes, as Megatron-Bridge allows.
        stack: the versions whose recipe it is; the newest known by default.

    Raises:
        OverlapConfigError: no version has such a recipe; the message lists the known ones.
    """
    return {
        field: value
        for field, value in RECIPES[known_recipe_name(name, RECIPES)].items()
        if field not in FIELD_VERSIONS or holds([FIELD_VERSIONS[field]], stack)
    }
