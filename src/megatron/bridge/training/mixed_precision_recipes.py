"""The mixed-precision recipes, as data: field values by recipe name, dtypes by name. Torch-free.

Names, fields and values are those of Megatron-Bridge 0.3.1, read off its objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.near_names import nearest

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

_FOUR_LAYERS_IN_BF16 = {"num_layers_at_start_in_bf16": 2, "num_layers_at_end_in_bf16": 2}

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {f"{half}_mixed": base for half, base in _HALF.items()}
    | {
        f"{half}_with_{scaling}_mixed": base | fp8
        for half, base in _HALF.items()
        for scaling, fp8 in _FP8.items()
    }
    | {
        "bf16_with_nvfp4_mixed": _HALF["bf16"] | {"fp4": "e2m1", "fp4_recipe": "nvfp4"},
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


def known_recipe_name(name: str, known: Mapping[str, Any]) -> str:
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


def mixed_precision_recipe(name: str) -> dict[str, Any]:
    """A recipe's field values that are not left at their default, dtypes by name: "bfloat16".

    `name` may be written with dashes, as Megatron-Bridge allows.

    Raises:
        OverlapConfigError: no such recipe; the message lists the known ones.
    """
    return dict(RECIPES[known_recipe_name(name, RECIPES)])
