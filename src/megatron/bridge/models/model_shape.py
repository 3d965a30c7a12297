"""What determines a GPT model's parameter tensors, read from its configuration and checked.

Nothing is built and only the standard library is imported, so that `overlapkit explain` can count
on a laptop. The meaning of each field and the possible combinations are those of Megatron-Core
0.16's `TransformerConfig` and `GPTModel`; a functional test compares the result with real models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron.bridge.models.layer_blocks import (
    DENSE_LAYER,
    EXPERTS,
    MAMBA,
    MOE_LAYER,
    HybridPattern,
    UncountableModel,
    hybrid_pattern,
    moe_layers_of,
)
from megatron.bridge.models.model_fields import divided, read, read_size

LayerSpec = Literal["transformer_engine", "local"]


_OTHER_ARCHITECTURES: dict[str, str] = {
    "experimental_attention_variant": "its attention has other parameters than Megatron-Core's own",
    "freeze_language_model": "frozen parameters are in no gradient buffer",
    "heterogeneous_block_specs": "its layers differ from each other",
    "encoder_num_layers": "an encoder-decoder model has cross-attention",
    "seq_length_dec": "an encoder-decoder model has cross-attention",
    "restore_modelopt_state": "a ModelOpt layer spec has another order of parameters",
    "use_kitchen": "Kitchen's layers are not known here",
    "use_transformer_engine_full_layer_spec": "the full TE layer has another order of parameters",
    "vision_config": "a vision tower's parameters are not counted",
}
"""Attributes that, when set, make a model that is not counted here, and why."""

_ORDER_UNKNOWN: dict[str, str] = {
    "hybrid_layer_pattern": "the order of a hybrid model's parameters is not known here",
    "hybrid_override_pattern": "the order of a hybrid model's parameters is not known here",
    "is_hybrid_model": "the order of a hybrid model's parameters is not known here",
    "mamba_stack_spec": "the order of a hybrid model's parameters is not known here",
    "moe_latent_size": "the order of the projections around the experts is not known here",
}
"""The same for models whose parameters are only added up: their kernels need a GPU to be built,
so that no order of theirs was compared with the real one."""

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
    `latent` is the width that tokens are projected to before they go to their experts (LatentMoE);
    0 where experts work on the entire width.
    """

    count: int
    ffn: int
    shared_ffn: int
    shared_gate: bool
    grouped: bool
    one_tensor: bool
    latent: int


@dataclass(frozen=True)
class Mamba:
    """A Mamba-2 block's sizes, over all ranks (Megatron-Core's MambaMixer).

    `conv` is the length of its causal convolution.
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    conv: int = 4

    @property
    def inner(self) -> int:
        """Width of its values."""
        return self.heads * self.head_dim

    @property
    def projected(self) -> int:
        """Width of its input projection: gate, values, both state matrices, and time steps."""
        return 2 * self.inner + 2 * self.groups * self.state + self.heads


@dataclass(frozen=True)
class Prediction:
    """Multi-token prediction: how many more tokens are predicted, and by which layers.

    `blocks` has the layers of one depth, as `ModelShape.blocks`. Where `shared`, all depths have
    the same weights (mtp_use_repeated_layer).
    """

    depths: int
    shared: bool
    blocks: tuple[str, ...]

    @property
    def modules(self) -> int:
        """Depths with weights of their own."""
        return 1 if self.shared else self.depths


@dataclass(frozen=True)
class ModelShape:
    """Everything that determines parameter sizes, except the pipeline; sizes over all ranks.

    `blocks` has the blocks of each layer, as symbols of `layer_blocks`, and `fp8_layers` says
    whether its linear weights are kept in FP8 or FP4. `positions` is 0 without a learned position
    embedding. `vocab` is padded.
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
    mamba: Mamba | None
    prediction: Prediction | None
    blocks: tuple[str, ...]
    fp8_layers: tuple[bool, ...]
    vocab: int
    positions: int
    tied: bool
    tp: int
    ep: int
    expert_tp: int
    layer_spec: LayerSpec

    @property
    def moe_layers(self) -> tuple[bool, ...]:
        """Whether each layer has experts."""
        return tuple(EXPERTS in blocks for blocks in self.blocks)


def read_shape(
    model: Any,
    *,
    vocab_size: int | None = None,
    layer_spec: LayerSpec | None = None,
    ordered: bool = True,
) -> ModelShape:
    """Read `model`, any object with `TransformerConfig`'s attribute names; see `chunk_parameters`.

    Args:
        model: the configuration.
        vocab_size, layer_spec: see `chunk_parameters`.
        ordered: whether the order of the parameters matters, as for buckets. If not, models are
            read of which only the number of parameters is known.

    Raises:
        UncountableModel: a size is missing or not divisible, or the architecture is not known.
    """
    unknown = _OTHER_ARCHITECTURES | (_ORDER_UNKNOWN if ordered else {})
    for name, why in unknown.items():
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
    pattern = hybrid_pattern(model)
    layers = layer_count(model)
    blocks = _blocks(model, pattern, layers, experts)
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
        mamba=_mamba(model, hidden, tp) if any(MAMBA in each for each in blocks) else None,
        prediction=_prediction(model, pattern, blocks),
        blocks=blocks,
        fp8_layers=_fp8_layers(model, layers),
        vocab=_padded_vocab(model, vocab_size, tp),
        positions=read_size(model, "seq_length") if learned else 0,
        tied=bool(read(model, "share_embeddings_and_output_weights")),
        tp=tp,
        ep=read_size(model, "expert_model_parallel_size"),
        expert_tp=read_size(model, "expert_tensor_parallel_size", default=tp),
        layer_spec=layer_spec,
    )


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
        latent=getattr(model, "moe_latent_size", None) or 0,
    )


def layer_count(model: Any) -> int:
    """Layers of the model, without those of multi-token prediction.

    Raises:
        UncountableModel: it is not set, or a hybrid's pattern has another number of layers.
    """
    pattern = hybrid_pattern(model)
    if pattern is None:
        return read_size(model, "num_layers")
    count = len(pattern.blocks)
    if read_size(model, "num_layers", default=count) != count:
        raise UncountableModel(
            f"num_layers={read(model, 'num_layers')}, but the hybrid pattern has {count} layers"
        )
    return count


def _blocks(
    model: Any, pattern: HybridPattern | None, layers: int, experts: Experts | None
) -> tuple[str, ...]:
    if pattern is not None:
        if EXPERTS in pattern.blocks + pattern.prediction and experts is None:
            raise UncountableModel("the hybrid pattern has experts, but num_moe_experts is not set")
        return tuple(pattern.blocks)
    if experts is None:
        return (DENSE_LAYER,) * layers
    moe = moe_layers_of(read(model, "moe_layer_freq"), layers)
    return tuple(MOE_LAYER if each else DENSE_LAYER for each in moe)


def _mamba(model: Any, hidden: int, tp: int) -> Mamba:
    head = read_size(model, "mamba_head_dim")
    # Without a number of heads the width is twice the model's (Mamba-2, 2024, section 7.1).
    heads = read_size(model, "mamba_num_heads", default=2 * hidden // head)
    groups = read_size(model, "mamba_num_groups")
    for what, size in (("mamba_num_heads", heads), ("mamba_num_groups", groups)):
        divided(size, tp, what)
    return Mamba(heads, head, groups, read_size(model, "mamba_state_dim"))


def prediction_depths(model: Any) -> int:
    """Depths of multi-token prediction; 0 without it.

    Raises:
        UncountableModel: mtp_num_layers is not a whole number.
    """
    pattern = hybrid_pattern(model)
    depths = read(model, "mtp_num_layers") or (pattern.depths if pattern else 0)
    if isinstance(depths, bool) or not isinstance(depths, int) or depths < 0:
        raise UncountableModel(f"mtp_num_layers={depths!r} is not a whole number")
    return depths


def _prediction(
    model: Any, pattern: HybridPattern | None, blocks: tuple[str, ...]
) -> Prediction | None:
    depths = prediction_depths(model)
    if not depths:
        return None
    if pattern is not None and not pattern.prediction:
        raise UncountableModel("mtp_num_layers is set, but mtp_hybrid_override_pattern is not")
    # A transformer predicts with a layer like its last.
    own = tuple(pattern.prediction) if pattern is not None else blocks[-1:]
    return Prediction(depths, bool(getattr(model, "mtp_use_repeated_layer", False)), own)


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
