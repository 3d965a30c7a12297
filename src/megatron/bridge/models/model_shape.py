"""What determines a GPT model's parameter tensors, read from its configuration and checked.

Nothing is built and only the standard library is imported, so that `overlapkit explain` can count
on a laptop. The meaning of each field and the possible combinations are those of Megatron-Core
0.16's `TransformerConfig` and `GPTModel`; a functional test compares the result with real models.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LayerSpec = Literal["transformer_engine", "local"]


class UncountableModel(ValueError):
    """The configuration does not determine the parameters; the message says why."""


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

_OTHER_ARCHITECTURES: dict[str, str] = {
    "experimental_attention_variant": "its attention has other parameters than Megatron-Core's own",
    "freeze_language_model": "frozen parameters are in no gradient buffer",
    "heterogeneous_block_specs": "its layers differ from each other",
    "hybrid_override_pattern": "a hybrid model has Mamba layers",
    "is_hybrid_model": "a hybrid model has Mamba layers",
    "encoder_num_layers": "an encoder-decoder model has cross-attention",
    "seq_length_dec": "an encoder-decoder model has cross-attention",
    "mamba_stack_spec": "a hybrid model has Mamba layers",
    "moe_latent_size": "latent projections around the experts are not counted",
    "mtp_num_layers": "multi-token prediction adds layers that are not counted",
    "restore_modelopt_state": "a ModelOpt layer spec has another order of parameters",
    "use_kitchen": "Kitchen's layers are not known here",
    "use_transformer_engine_full_layer_spec": "the full TE layer has another order of parameters",
    "vision_config": "a vision tower's parameters are not counted",
}
"""Attributes that, when set, make a model that is not counted here, and why."""

_LAYER_SPECS: dict[str, LayerSpec] = {
    "default_layer_spec": "transformer_engine",
    "transformer_engine_layer_spec": "transformer_engine",
    "get_gpt_layer_with_transformer_engine_spec": "transformer_engine",
    "get_gpt_decoder_block_spec": "transformer_engine",
    "local_layer_spec": "local",
    "get_gpt_layer_local_spec": "local",
}


@dataclass(frozen=True)
class LatentAttention:
    """Multi-latent attention's sizes; `q_rank` is None where the query is not compressed."""

    q_rank: int | None
    kv_rank: int
    qk_head_dim: int
    qk_position_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class Experts:
    """A mixture of experts' sizes, over all ranks; `shared_ffn` is 0 without a shared expert.

    A grouped GEMM has a tensor for each expert, or `one_tensor` for all (the legacy grouped GEMM).
    """

    count: int
    ffn: int
    shared_ffn: int
    shared_gate: bool
    grouped: bool
    one_tensor: bool


@dataclass(frozen=True)
class ModelShape:
    """Everything that determines parameter sizes, except the pipeline; sizes over all ranks.

    `moe_layers` says for each layer whether it has experts, and `fp8_layers` whether its linear
    weights are kept in FP8 or FP4. `positions` is 0 without a learned position embedding. `vocab`
    is padded.
    """

    hidden: int
    ffn: int
    heads: int
    query_groups: int
    head_dim: int
    gated: bool
    linear_bias: bool
    qkv_bias: bool
    output_gate: bool
    qk_norm: bool
    norm_bias: bool
    softmax_offset: bool
    latent: LatentAttention | None
    experts: Experts | None
    moe_layers: tuple[bool, ...]
    fp8_layers: tuple[bool, ...]
    vocab: int
    positions: int
    tied: bool
    tp: int
    ep: int
    expert_tp: int
    layer_spec: LayerSpec


def read_shape(
    model: Any, *, vocab_size: int | None = None, layer_spec: LayerSpec | None = None
) -> ModelShape:
    """Read `model`, any object with `TransformerConfig`'s attribute names; see `chunk_parameters`.

    Raises:
        UncountableModel: a size is missing or not divisible, or the architecture is not known.
    """
    for name, why in _OTHER_ARCHITECTURES.items():
        value = getattr(model, name, None)
        if value:
            shown = f"{name}={value!r}" if isinstance(value, (bool, int, str)) else f"{name} is set"
            raise UncountableModel(f"{shown}: {why}")
    hidden, heads = read_size(model, "hidden_size"), read_size(model, "num_attention_heads")
    groups = read_size(model, "num_query_groups", default=heads)
    latent = _latent_attention(model) if read(model, "multi_latent_attention") else None
    tp = read_size(model, "tensor_model_parallel_size")
    if heads % tp or (groups % tp and tp % groups):
        raise UncountableModel(
            f"num_attention_heads={heads} and num_query_groups={groups} cannot be divided over "
            f"tensor_model_parallel_size={tp}"
        )
    layer_spec = layer_spec or _layer_spec(model)
    if latent and layer_spec == "local":
        raise UncountableModel(
            "multi_latent_attention=True: Megatron-Core 0.16 cannot build it with the local spec"
        )
    normalization = read(model, "normalization")
    if normalization not in ("LayerNorm", "RMSNorm"):
        raise UncountableModel(
            f"normalization={normalization!r}: only LayerNorm and RMSNorm are known here"
        )
    l2_norm = read(model, "qk_l2_norm") and latent is None
    learned = read(model, "position_embedding_type") == "learned_absolute"
    ffn = read_size(model, "ffn_hidden_size", default=4 * hidden)
    experts = _experts(model, ffn, layer_spec)
    layers = read_size(model, "num_layers")
    return ModelShape(
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        query_groups=groups,
        head_dim=read_size(model, "kv_channels", default=hidden // heads),
        gated=bool(read(model, "gated_linear_unit")),
        linear_bias=bool(read(model, "add_bias_linear")),
        qkv_bias=bool(read(model, "add_bias_linear") or read(model, "add_qkv_bias")),
        output_gate=bool(read(model, "attention_output_gate")),
        qk_norm=bool(read(model, "qk_layernorm") and not l2_norm),
        norm_bias=normalization == "LayerNorm",
        softmax_offset=read(model, "softmax_type") == "learnable",
        latent=latent,
        experts=experts,
        moe_layers=moe_layers_of(read(model, "moe_layer_freq"), layers)
        if experts
        else (False,) * layers,
        fp8_layers=_fp8_layers(model, layers),
        vocab=_padded_vocab(model, vocab_size, tp),
        positions=read_size(model, "seq_length") if learned else 0,
        tied=bool(read(model, "share_embeddings_and_output_weights")),
        tp=tp,
        ep=read_size(model, "expert_model_parallel_size"),
        expert_tp=read_size(model, "expert_tensor_parallel_size", default=tp),
        layer_spec=layer_spec,
    )


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


def _latent_attention(model: Any) -> LatentAttention:
    q_rank = read(model, "q_lora_rank")
    return LatentAttention(
        q_rank=None if q_rank is None else read_size(model, "q_lora_rank"),
        kv_rank=read_size(model, "kv_lora_rank"),
        qk_head_dim=read_size(model, "qk_head_dim"),
        qk_position_dim=read_size(model, "qk_pos_emb_head_dim"),
        v_head_dim=read_size(model, "v_head_dim"),
    )


def _experts(model: Any, ffn: int, layer_spec: LayerSpec) -> Experts | None:
    if read(model, "num_moe_experts") is None:
        return None
    shared = read(model, "moe_shared_expert_intermediate_size") is not None
    grouped = bool(read(model, "moe_grouped_gemm"))
    one_tensor = grouped and (
        layer_spec == "local" or bool(read(model, "moe_use_legacy_grouped_gemm"))
    )
    if read(model, "add_bias_linear") and (shared or one_tensor):
        culprit = "a shared expert" if shared else "the legacy grouped GEMM of experts"
        raise UncountableModel(
            f"add_bias_linear is on, and Megatron-Core refuses that with {culprit}"
        )
    return Experts(
        count=read_size(model, "num_moe_experts"),
        ffn=read_size(model, "moe_ffn_hidden_size", default=ffn),
        shared_ffn=read_size(model, "moe_shared_expert_intermediate_size") if shared else 0,
        shared_gate=bool(read(model, "moe_shared_expert_gate")),
        grouped=grouped,
        one_tensor=one_tensor,
    )


def moe_layers_of(freq: Any, layers: int) -> tuple[bool, ...]:
    """Whether each of a model's layers has experts.

    Args:
        freq: moe_layer_freq: a number, a list of 0 and 1, or a text such as ``[0]*3+[1]*58``.
        layers: how many there are.

    Raises:
        UncountableModel: it is none of these, or has another number of layers.
    """
    if isinstance(freq, str):
        freq = _evaluated(freq)
    if isinstance(freq, int) and not isinstance(freq, bool) and freq != 0:
        return tuple(layer % freq == 0 for layer in range(layers))
    if not isinstance(freq, Sequence) or any(entry not in (0, 1) for entry in freq):
        raise UncountableModel(
            f"moe_layer_freq={freq!r} is neither a number other than 0 nor a list of 0 and 1"
        )
    if len(freq) != layers:
        raise UncountableModel(f"moe_layer_freq has {len(freq)} entries for num_layers={layers}")
    return tuple(entry == 1 for entry in freq)


def _evaluated(pattern: str) -> Any:
    """The value of a pattern such as ``[0]*3+[1]*58``: only lists, sums and products."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.List):
            return [value(entry) for entry in node.elts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add):
                if isinstance(left, list) and isinstance(right, list):
                    return left + right
            elif isinstance(left, list) != isinstance(right, list):
                entries, times = (left, right) if isinstance(left, list) else (right, left)
                if len(entries) * times <= 100_000:
                    return entries * times
        raise ValueError

    try:
        return value(ast.parse(pattern.strip(), mode="eval"))
    except (SyntaxError, ValueError, RecursionError):
        raise UncountableModel(
            f"moe_layer_freq={pattern!r} is not understood: write a list such as [0]*3+[1]*58"
        ) from None


def _fp8_layers(model: Any, layers: int) -> tuple[bool, ...]:
    # FP4 weights are in the same kind of buffer, which core 0.18 and newer divide by elements, too;
    # 0.17 counts a byte of two elements as one.
    kept = any(read(model, fp) and read(model, f"{fp}_param") for fp in ("fp8", "fp4"))
    if not kept:
        return (False,) * layers
    if not read(model, "first_last_layers_bf16"):
        return (True,) * layers
    first = read(model, "num_layers_at_start_in_bf16")
    end = layers - read(model, "num_layers_at_end_in_bf16")
    return tuple(first <= layer < end for layer in range(layers))


def _padded_vocab(model: Any, vocab_size: int | None, tp: int) -> int:
    own = read(model, "vocab_size")
    if own is None and vocab_size is None:
        raise UncountableModel("vocab_size is not set, and no tokenizer's vocabulary was given")
    vocab = read_size(model, "vocab_size", default=vocab_size)
    if own is not None and not read(model, "should_pad_vocab"):
        if vocab % tp:
            raise UncountableModel(
                f"vocab_size={vocab} cannot be divided over tensor_model_parallel_size={tp}: "
                "set should_pad_vocab=True"
            )
        return vocab
    multiple = read_size(model, "make_vocab_size_divisible_by") * tp
    return -(-vocab // multiple) * multiple


def _layer_spec(model: Any) -> LayerSpec:
    """The layer spec of `model`, given as a function, a partial, a dotted name or a YAML node."""
    spec = read(model, "transformer_layer_spec")
    by_default: LayerSpec = "transformer_engine"
    if read(model, "transformer_impl") == "local":
        by_default = "local"
    if spec is None:
        return by_default
    keywords = spec if isinstance(spec, Mapping) else getattr(spec, "keywords", {})
    named = spec.get("_target_") if isinstance(spec, Mapping) else getattr(spec, "func", spec)
    name = named if isinstance(named, str) else getattr(named, "__name__", type(named).__name__)
    name = name.rpartition(".")[2]
    if name not in _LAYER_SPECS:
        raise UncountableModel(f"transformer_layer_spec={name}: its layers are not known here")
    if name == "get_gpt_decoder_block_spec" and keywords.get("use_transformer_engine") is False:
        return "local"
    return by_default if name == "default_layer_spec" else _LAYER_SPECS[name]
