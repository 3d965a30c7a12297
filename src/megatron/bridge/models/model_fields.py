"""The fields of a model's configuration that determine its parameters, read with their defaults."""

from __future__ import annotations

from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel

DEFAULTS: dict[str, Any] = {
    "num_layers": None,
    "hidden_size": None,
    "num_attention_heads": None,
    "num_query_groups": None,
    "ffn_hidden_size": None,
    "kv_channels": None,
    "gated_linear_unit": False,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "attention_output_gate": False,
    "qk_layernorm": False,
    "qk_l2_norm": False,
    "normalization": "LayerNorm",
    "softmax_type": "vanilla",
    "transformer_impl": "transformer_engine",
    "multi_latent_attention": False,
    "num_moe_experts": None,
    "moe_ffn_hidden_size": None,
    "moe_layer_freq": 1,
    "moe_grouped_gemm": False,
    "moe_use_legacy_grouped_gemm": False,
    "moe_shared_expert_intermediate_size": None,
    "moe_shared_expert_gate": False,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "context_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": None,
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "pipeline_model_parallel_layout": None,
    "mtp_num_layers": None,
    "mamba_state_dim": 128,
    "mamba_head_dim": 64,
    "mamba_num_groups": 8,
    "mamba_num_heads": None,
    "fp8": None,
    "fp8_param": False,
    "fp4": None,
    "fp4_param": False,
    "first_last_layers_bf16": False,
    "num_layers_at_start_in_bf16": 1,
    "num_layers_at_end_in_bf16": 1,
}
"""Values of attributes that a model lacks: `TransformerConfig`'s defaults."""

MLA_DEFAULTS: dict[str, Any] = {
    "q_lora_rank": 512,
    "kv_lora_rank": 512,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
    "normalization": "RMSNorm",
}
"""The same for a model with multi_latent_attention: `MLATransformerConfig`'s defaults."""

PROVIDER_DEFAULTS: dict[str, Any] = {
    "share_embeddings_and_output_weights": True,
    "position_embedding_type": "learned_absolute",
    "seq_length": 1024,
    "vocab_size": None,
    "should_pad_vocab": False,
    "make_vocab_size_divisible_by": 128,
    "transformer_layer_spec": None,
}
"""The same for attributes that are not `TransformerConfig` fields: `GPTModelProvider`'s."""


def read(model: Any, name: str) -> Any:
    """The attribute, or its default where `model` lacks it."""
    if name in MLA_DEFAULTS and getattr(model, "multi_latent_attention", False):
        return getattr(model, name, MLA_DEFAULTS[name])
    default = DEFAULTS[name] if name in DEFAULTS else PROVIDER_DEFAULTS.get(name)
    return getattr(model, name, default)


_UNSET_AS_ZERO = ("num_layers", "hidden_size", "num_attention_heads")
"""Sizes of which `TransformerConfig`'s own default is 0."""


def read_size(model: Any, name: str, *, default: int | None = None) -> int:
    """The attribute as a positive whole number; `default` replaces a missing one and None.

    Raises:
        UncountableModel: it is not set, or is not a positive whole number.
    """
    value = read(model, name)
    if value is None:
        value = default
    if value is None or (value == 0 and name in _UNSET_AS_ZERO):
        raise UncountableModel(f"{name} is not set")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UncountableModel(f"{name}={value!r} is not a positive whole number")
    return value


def divided(total: int, ranks: int, what: str) -> int:
    """`total / ranks`.

    Raises:
        UncountableModel: it leaves a remainder; Megatron-Core refuses such a model too.
    """
    if total % ranks:
        raise UncountableModel(f"{what} = {total} cannot be divided over {ranks} ranks")
    return total // ranks
