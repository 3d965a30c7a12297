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
NEMOTRON: dict[str, Any] = {
    "normalization": "LayerNorm",
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_length": 4096,
}
"""The same for the Nemotron 4 models (Nemotron-4 340B Technical Report, 2024, section 2.1)."""
HYBRID: dict[str, Any] = {
    "is_hybrid_model": True,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "gated_linear_unit": False,
    "position_embedding_type": "none",
    "share_embeddings_and_output_weights": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_length": 8192,
}
"""The same for models of Mamba, attention and feed-forward layers (Nemotron-H, 2025, section 2)."""
_EXPERTS: dict[str, Any] = {"moe_grouped_gemm": True, "expert_tensor_parallel_size": 1}
_FAMILIES = {
    "llama3": LLAMA,
    "llama2": {**LLAMA, "seq_length": 4096},
    "llama4": {**MIXTURE, "seq_length": 8192},
    "gpt3": GPT3,
    "nemotron4": NEMOTRON,
    "nemotronh": HYBRID,
    "nemotron": {**HYBRID, **_EXPERTS},
}
"""By the first word of a name; other models are mixtures of experts."""

_STAGES = r"(_(instruct|base|chat|pretrain|hf|8k|bf16|fp8|v0\.1))+(?=$|_\d{4}$)"
"""What a name says of a release's training and precision, which do not change its shape."""
_SPELLINGS = (
    # Where only the training changed, the release has the shape of the first.
    (r"^llama_?3([._]?[13])?_?(?=\d+b)", "llama3_"),
    (r"^llama_?2_?(?=\d+b)", "llama2_"),
    (r"^llama_?4_?(scout|maverick)(_17b_(16|128)e)?$", r"llama4_\1"),
    (r"^gpt_?3_?(?=\d+b)", "gpt3_"),
    (r"^grok_?1(_314b)?$", "grok1_314b"),
    (r"^deepseek_?v?2$", "deepseek_v2"),
    (r"^deepseek_?(v?3(\.1)?|r1)(_\d{4})?$", "deepseek_v3"),
    (r"^kimi_?k2(_\d{4}|_thinking)?$", "kimi_k2"),
    (r"^nemotron_?4_(?=\d+b)", "nemotron4_"),
    (r"^nemotron_?h_(?=\d+b)", "nemotronh_"),
    (r"^nemotron_?3_nano(_30b_a3b)?$", "nemotron_3_nano"),
    (r"^nemotron_?3_super(_120b_a12b)?$", "nemotron_3_super"),
)
"""How model cards and tables write the names, as patterns and replacements."""


_UNKNOWN = {
    r"^deepseek_?v?4": "the time of its compressed attention and of its hyper-connections does not "
    "follow from published sizes",
    r"^deepseek_?v?3\.?2": "the time of its sparse attention does not follow from published sizes",
    r"^nemotron_?3_ultra": "the order of its layers and the width of its experts are not in this "
    "release; give a CONFIG with hybrid_override_pattern and the other sizes",
    r"^qwen_?3_(next|5)": "its layers of linear attention are not estimated",
}
"""Models that are not estimated, as patterns, and why."""


class _Models(msgspec.Struct, frozen=True):
    models: dict[str, dict[str, Any]]


@cache
def _known() -> dict[str, dict[str, Any]]:
    sizes = msgspec.json.decode(_DATA.read_bytes(), type=_Models).models
    return {
        name: {**_FAMILIES.get(name.partition("_")[0], MIXTURE), **own}
        for name, own in sizes.items()
    }


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
    plain = plain.removeprefix("nvidia_").removeprefix("meta_")
    plain = re.sub(_STAGES, "", plain)
    for spelt, ours in _SPELLINGS:
        plain = re.sub(spelt, ours, plain)
    if plain in _known():
        return dict(_known()[plain])
    for pattern, why in _UNKNOWN.items():
        if re.search(pattern, plain):
            raise InputError(f"--model {name}: not estimated: {why}")
    near = nearest(plain, _known())
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"--model {name}: unknown model; {hint}known are {', '.join(_known())}")
