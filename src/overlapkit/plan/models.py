"""Published models by name, as the settings of a configuration's model section."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from megatron.bridge.training.near_names import nearest
from overlapkit.errors import InputError

_DATA = Path(__file__).resolve().parents[1] / "data" / "hardware.json"

LLAMA: dict[str, Any] = {
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_length": 8192,
}
"""What the Llama 3 models have in common besides their sizes (The Llama 3 Herd of Models, 2024,
table 3 and section 3.2)."""
GPT3: dict[str, Any] = {
    "normalization": "LayerNorm",
    "add_bias_linear": True,
    "position_embedding_type": "learned_absolute",
    "share_embeddings_and_output_weights": True,
    "seq_length": 2048,
}
"""The same for GPT-3 (Language Models are Few-Shot Learners, 2020, section 2.1)."""
MIXTURE: dict[str, Any] = {
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
    "moe_grouped_gemm": True,
    "expert_tensor_parallel_size": 1,
    "seq_length": 4096,
}
"""The same for mixtures of experts, as in Megatron-Bridge's recipes: experts are divided only over
EP, since a part of one expert would be too narrow."""
_FAMILIES = {"llama3": LLAMA, "gpt3": GPT3, "mixtral": MIXTURE, "qwen3": MIXTURE, "gpt": MIXTURE}


class _Models(msgspec.Struct, frozen=True):
    models: dict[str, dict[str, Any]]


@cache
def _known() -> dict[str, dict[str, Any]]:
    sizes = msgspec.json.decode(_DATA.read_bytes(), type=_Models).models
    return {name: {**_FAMILIES[name.partition("_")[0]], **own} for name, own in sizes.items()}


def model_names() -> tuple[str, ...]:
    """The names that `named_model` knows."""
    return tuple(_known())


def named_model(name: str) -> dict[str, Any]:
    """The settings of a model section for a model such as llama3_70b, Llama-3.1-405B or gpt3_175b.

    Raises:
        InputError: it is not known. The message lists those that are, and the nearest.
    """
    # An organisation before the name is not part of it.
    plain = re.sub(r"[^a-z0-9.]+", "_", name.lower().rpartition("/")[2]).strip("_")
    # 3.1 and 3.3 have the shapes of 3: only the training changed.
    plain = re.sub(r"^llama_?3([._]?[13])?_?(?=\d+b)", "llama3_", plain)
    plain = re.sub(r"^gpt_?3_?(?=\d+b)", "gpt3_", plain)
    # A release's stage of training does not change its shape.
    plain = re.sub(r"_(instruct|base|chat|pretrain|v0\.1|hf)$", "", plain)
    if plain in _known():
        return dict(_known()[plain])
    near = nearest(plain, _known())
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"--model {name}: unknown model; {hint}known are {', '.join(_known())}")
