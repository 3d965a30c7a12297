"""The parameter tensors of a Megatron-Core GPT model on one rank, without building the model.

Names, sizes and order are those of `named_parameters()` on megatron-core 0.16's `GPTModel`. The
order is that in which modules register: attention's output projection before its input projection,
a module's own parameters before its children's. The order matters, because gradient buckets follow
it (`megatron.bridge.training.bucketing`).

Two layer specs are supported. "transformer_engine" fuses each layer norm into the linear layer
after it, and the norm's parameters come first there. "local" has separate norms, `input_layernorm`
before attention and `pre_mlp_layernorm` before the MLP, and with a grouped GEMM it has one tensor
for all experts. Other sizes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from megatron.bridge.models.layer_blocks import ATTENTION, EXPERTS, MAMBA, MLP, UncountableModel
from megatron.bridge.models.model_fields import divided
from megatron.bridge.models.model_shape import (
    Experts,
    LatentAttention,
    LayerSpec,
    Mamba,
    ModelShape,
    read_shape,
)
from megatron.bridge.models.pipeline_layout import ModelPart, parts_by_chunk, whole_model

__all__ = [
    "LayerSpec",
    "ParameterTensor",
    "UncountableModel",
    "chunk_parameter_count",
    "chunk_parameters",
    "model_parameter_count",
]


@dataclass(frozen=True)
class ParameterTensor:
    """One parameter tensor on one rank.

    Attributes:
        name: as in `named_parameters()`, layers numbered within the model chunk.
        numel: elements on this rank.
        expert: reduced over the expert-data-parallel group, separately from all others. This is so
            only with expert parallelism: at EP = 1 Megatron-Core treats experts like any other
            parameter.
        shared_embedding: one of the copies of embedding weights that are tied, or that multi-token
            prediction has on its stage. Without pipeline parallelism there is one tensor, without
            this mark.
        fp8: the weight itself is kept in FP8 (`fp8_param`) or FP4, with a separate gradient buffer.
    """

    name: str
    numel: int
    expert: bool = False
    shared_embedding: bool = False
    fp8: bool = False


class TensorGroup(NamedTuple):
    """Consecutive tensors: those of a layer, or what comes before or after the layers."""

    prefix: str
    tensors: tuple[ParameterTensor, ...]


def chunk_parameters(
    model: Any,
    *,
    pp_rank: int = 0,
    vp_stage: int = 0,
    vocab_size: int | None = None,
    layer_spec: LayerSpec | None = None,
) -> list[ParameterTensor]:
    """One rank's shard of one model chunk, in the order of `named_parameters()`.

    Args:
        model: a `GPTModelProvider`, or any object with the attribute names of `TransformerConfig`
            and `GPTModelProvider` (vocab_size, seq_length, share_embeddings_and_output_weights
            ...). Missing attributes take their defaults.
        pp_rank: the pipeline stage, from 0.
        vp_stage: the model chunk within the stage, from 0.
        vocab_size: the tokenizer's vocabulary size, used where the model has none, and padded to a
            multiple of make_vocab_size_divisible_by x TP. A model's own is padded where
            should_pad_vocab is on.
        layer_spec: None takes that of the model's transformer_layer_spec, by default Transformer
            Engine's.

    Raises:
        UncountableModel: the configuration does not determine them; the message says why.
    """
    shape = read_shape(model, vocab_size=vocab_size, layer_spec=layer_spec)
    return [
        replace(tensor, name=prefix + tensor.name)
        for prefix, tensors in chunk_tensor_groups(shape, model, pp_rank, vp_stage)
        for tensor in tensors
    ]


def chunk_parameter_count(
    model: Any,
    *,
    pp_rank: int = 0,
    vp_stage: int = 0,
    vocab_size: int | None = None,
    layer_spec: LayerSpec | None = None,
) -> int:
    """Parameters in one rank's shard of one model chunk: `chunk_parameters` summed, but cheaper."""
    shape = read_shape(model, vocab_size=vocab_size, layer_spec=layer_spec)
    return _total(chunk_tensor_groups(shape, model, pp_rank, vp_stage))


def model_parameter_count(model: Any, vocab_size: int | None = None) -> int:
    """Parameters of the whole model, each counted once however often ranks replicate it.

    Vocabulary padding is counted, since it is trained; the second copy of tied embeddings, which
    pipeline parallelism makes, is not.

    Raises:
        UncountableModel: the configuration does not determine them; the message says why.
    """
    shape = replace(read_shape(model, vocab_size=vocab_size), tp=1, ep=1, expert_tp=1)
    predicts = shape.prediction is not None
    return _total(tensor_groups(shape, whole_model(len(shape.blocks), predicts=predicts)))


def chunk_tensor_groups(
    shape: ModelShape, model: Any, pp_rank: int, vp_stage: int
) -> list[TensorGroup]:
    """`chunk_parameters` in groups. Equal layers share their tensors; names lack the prefix."""
    parts = parts_by_chunk(model)
    if not (0 <= vp_stage < len(parts) and 0 <= pp_rank < len(parts[0])):
        raise UncountableModel(
            f"there is no chunk {vp_stage} on pipeline stage {pp_rank}: the model has "
            f"{len(parts[0])} stage(s) of {len(parts)} chunk(s)"
        )
    return tensor_groups(shape, parts[vp_stage][pp_rank])


def tensor_groups(shape: ModelShape, part: ModelPart) -> list[TensorGroup]:
    """The same for a part of the model.

    Groups of equal layers share one tuple of tensors, here and from call to call.
    """
    whole, predicts = part.first and part.last, part.predicts and shape.prediction is not None
    copied = shape.tied or shape.prediction is not None
    size = divided(shape.vocab, shape.tp, "vocabulary") * shape.hidden
    groups = []
    # Prediction embeds the next tokens where its layers are.
    if part.first or predicts:
        word = ParameterTensor("weight", size, shared_embedding=copied and not whole)
        groups.append(TensorGroup("embedding.word_embeddings.", (word,)))
        if shape.positions:
            position = ParameterTensor("weight", shape.positions * shape.hidden)
            groups.append(TensorGroup("embedding.position_embeddings.", (position,)))
    kinds = [(shape.blocks[layer], shape.fp8_layers[layer]) for layer in part.layers]
    tensors = {(blocks, fp8): _layer_tensors(shape, blocks, fp8) for blocks, fp8 in set(kinds)}
    for number, kind in enumerate(kinds):
        groups.append(TensorGroup(f"decoder.layers.{number}.", tensors[kind]))
    if part.normalizes:
        groups.append(
            TensorGroup("decoder.", tuple(_norm("final_layernorm.", shape.hidden, shape)))
        )
    if predicts:
        groups += _prediction_groups(shape)
    if part.last and not (shape.tied and whole):
        # The weight that is tied is the embedding's, where prediction has put one here.
        tied = shape.tied and not predicts
        weight = ParameterTensor("weight", size, shared_embedding=tied)
        groups.append(TensorGroup("output_layer.", (weight,)))
    return groups


def _prediction_groups(shape: ModelShape) -> list[TensorGroup]:
    """The layers of multi-token prediction (core/transformer/multi_token_prediction.py)."""
    prediction = shape.prediction
    assert prediction is not None
    hidden = shape.hidden
    # The norms of the embedding and of the hidden state, and the projection of both together.
    joined = divided(hidden, shape.tp, "hidden_size") * 2 * hidden
    before = _norm("enorm.", hidden, shape) + _norm("hnorm.", hidden, shape)
    kept = bool(shape.fp8_layers) and all(shape.fp8_layers)
    before += _linear("eh_proj.", joined, fp8=kept and shape.layer_spec != "local")
    after = tuple(_norm("final_layernorm.", hidden, shape))
    groups = []
    for depth in range(prediction.modules):
        at = f"mtp.layers.{depth}."
        groups.append(TensorGroup(at, tuple(before)))
        for blocks in prediction.blocks:
            groups.append(
                TensorGroup(f"{at}transformer_layer.", _layer_tensors(shape, blocks, kept))
            )
        groups.append(TensorGroup(at, after))
    return groups


def _total(groups: list[TensorGroup]) -> int:
    by_identity = {id(tensors): tensors for _, tensors in groups}
    numels = {key: sum(t.numel for t in tensors) for key, tensors in by_identity.items()}
    return sum(numels[id(tensors)] for _, tensors in groups)


@lru_cache(maxsize=256)
def _layer_tensors(shape: ModelShape, blocks: str, fp8: bool) -> tuple[ParameterTensor, ...]:
    """Cached: a layer may have hundreds of experts, and a sweep needs it thousands of times."""
    return tuple(_layer(shape, blocks, fp8=fp8))


def _layer(shape: ModelShape, blocks: str, *, fp8: bool) -> list[ParameterTensor]:
    local = shape.layer_spec == "local"
    fp8 = fp8 and not local
    tensors = []
    if MAMBA in blocks and shape.mamba:
        tensors += _mamba(shape, shape.mamba, fp8=fp8)
    if ATTENTION in blocks:
        if local or shape.latent:
            tensors += _norm("input_layernorm.", shape.hidden, shape)
        if shape.softmax_offset:
            offset = "self_attention.core_attention.softmax_offset"
            tensors.append(ParameterTensor(offset, shape.heads // shape.tp))
        if shape.latent:
            tensors += _latent_attention(shape, shape.latent, fp8=fp8)
        else:
            tensors += _self_attention(shape, fp8=fp8)
    experts = shape.experts if EXPERTS in blocks else None
    if experts or (local and MLP in blocks):
        tensors += _norm("pre_mlp_layernorm.", shape.hidden, shape)
    if experts:
        tensors += _mixture(shape, experts, fp8=fp8)
    elif MLP in blocks:
        tensors += [] if local else _norm("mlp.linear_fc1.layer_norm_", shape.hidden, shape)
        tensors += _mlp("mlp.", shape, shape.ffn, shape.tp, fp8=fp8)
    return tensors


def _mamba(shape: ModelShape, mamba: Mamba, *, fp8: bool) -> list[ParameterTensor]:
    """A Mamba-2 block (core/ssm/mamba_mixer.py). The order is not that of the real one."""
    at, tp = "mixer.", shape.tp
    inner, heads = mamba.inner // tp, mamba.heads // tp
    convolved = inner + 2 * mamba.groups // tp * mamba.state
    projected = divided(mamba.projected, tp, "width of the Mamba projection")
    own = {
        "dt_bias": heads,
        "A_log": heads,
        "D": heads,
        "conv1d.weight": convolved * mamba.conv,
        "conv1d.bias": convolved,
        "norm.weight": inner,
    }
    return [
        *(ParameterTensor(at + name, numel) for name, numel in own.items()),
        *_norm(at + "in_proj.layer_norm_", shape.hidden, shape),
        *_linear(at + "in_proj.", shape.hidden * projected, fp8=fp8),
        *_linear(at + "out_proj.", inner * shape.hidden, fp8=fp8),
    ]


def _self_attention(shape: ModelShape, *, fp8: bool) -> list[ParameterTensor]:
    at, hidden = "self_attention.", shape.hidden
    queries = shape.heads * shape.head_dim
    qkv = queries * (2 if shape.output_gate else 1) + 2 * shape.query_groups * shape.head_dim
    qkv = divided(qkv, shape.tp, "attention's query, key and value width")
    proj = divided(queries, shape.tp, "attention's query width")
    tensors = _linear(at + "linear_proj.", proj * hidden, hidden * shape.linear_bias, fp8=fp8)
    if shape.layer_spec == "transformer_engine":
        tensors += _norm(at + "linear_qkv.layer_norm_", hidden, shape)
    tensors += _linear(at + "linear_qkv.", hidden * qkv, qkv * shape.qkv_bias, fp8=fp8)
    if shape.qk_norm:
        tensors += _norm(at + "q_layernorm.", shape.head_dim, shape)
        tensors += _norm(at + "k_layernorm.", shape.head_dim, shape)
    return tensors


def _latent_attention(
    shape: ModelShape, latent: LatentAttention, *, fp8: bool
) -> list[ParameterTensor]:
    at, hidden, heads = "self_attention.", shape.hidden, shape.heads // shape.tp

    def compressed(name: str, rank: int, down: int, up: int) -> list[ParameterTensor]:
        # Unlike all other linear weights, the down projections are complete on every TP rank.
        tensors = _linear(f"{at}linear_{name}_down_proj.", hidden * down, fp8=fp8)
        if shape.qk_norm:
            tensors += _norm(f"{at}linear_{name}_up_proj.layer_norm_", rank, shape)
        return tensors + _linear(f"{at}linear_{name}_up_proj.", rank * up, fp8=fp8)

    q_width = heads * (latent.qk_head_dim + latent.qk_position_dim)
    kv_width = heads * (latent.qk_head_dim + latent.v_head_dim)
    proj = heads * latent.v_head_dim * hidden
    tensors = _linear(at + "linear_proj.", proj, hidden * shape.linear_bias, fp8=fp8)
    if latent.q_rank is None:
        tensors += _linear(at + "linear_q_proj.", hidden * q_width, fp8=fp8)
    else:
        tensors += compressed("q", latent.q_rank, latent.q_rank, q_width)
    kv_down = latent.kv_rank + latent.qk_position_dim
    return tensors + compressed("kv", latent.kv_rank, kv_down, kv_width)


def _mixture(shape: ModelShape, experts: Experts, *, fp8: bool) -> list[ParameterTensor]:
    hidden, routed = shape.hidden, shape.ep > 1
    tensors = _linear("mlp.router.", experts.count * hidden, experts.count * shape.linear_bias)
    if experts.latent:
        # Complete on every TP rank.
        hidden = experts.latent
        tensors += _linear("mlp.fc1_latent_proj.", shape.hidden * hidden, fp8=fp8)
        tensors += _linear("mlp.fc2_latent_proj.", shape.hidden * hidden, fp8=fp8)
    here = divided(experts.count, shape.ep, "num_moe_experts")
    fc1, fc2, bias = _mlp_sizes(shape, experts.ffn, shape.expert_tp, hidden)
    if experts.one_tensor:
        for number, numel in enumerate((fc1, fc2), start=1):
            name = f"mlp.experts.weight{number}"
            tensors.append(ParameterTensor(name, here * numel, expert=routed))
    elif experts.grouped:
        for name, numel, width in (("linear_fc1", fc1, bias), ("linear_fc2", fc2, hidden)):
            for expert in range(here):
                weight, *biases = _linear(
                    f"mlp.experts.{name}.", numel, width * shape.linear_bias, routed, fp8
                )
                tensors.append(replace(weight, name=f"{weight.name}{expert}"))
                tensors += [replace(tensor, name=f"{tensor.name}{expert}") for tensor in biases]
    else:
        for expert in range(here):
            at = f"mlp.experts.local_experts.{expert}."
            tensors += _mlp(at, shape, experts.ffn, shape.expert_tp, expert=routed, fp8=fp8)
    if experts.shared_ffn:
        if experts.shared_gate:
            tensors.append(ParameterTensor("mlp.shared_experts.gate_weight", shape.hidden))
        tensors += _mlp("mlp.shared_experts.", shape, experts.shared_ffn, shape.tp, fp8=fp8)
    return tensors


def _mlp_sizes(shape: ModelShape, ffn: int, ranks: int, hidden: int) -> tuple[int, int, int]:
    """One rank's elements of fc1's weight, of fc2's weight and of fc1's bias."""
    ffn = divided(ffn, ranks, "feed-forward width")
    width = ffn * (2 if shape.gated else 1)
    return hidden * width, ffn * hidden, width


def _mlp(
    at: str, shape: ModelShape, ffn: int, ranks: int, *, expert: bool = False, fp8: bool = False
) -> list[ParameterTensor]:
    fc1, fc2, bias = _mlp_sizes(shape, ffn, ranks, shape.hidden)
    return _linear(at + "linear_fc1.", fc1, bias * shape.linear_bias, expert, fp8) + _linear(
        at + "linear_fc2.", fc2, shape.hidden * shape.linear_bias, expert, fp8
    )


def _linear(
    at: str, weight: int, bias: int = 0, expert: bool = False, fp8: bool = False
) -> list[ParameterTensor]:
    tensors = [ParameterTensor(at + "weight", weight, expert, fp8=fp8)]
    if bias:
        tensors.append(ParameterTensor(at + "bias", bias, expert))
    return tensors


def _norm(at: str, width: int, shape: ModelShape) -> list[ParameterTensor]:
    tensors = [ParameterTensor(at + "weight", width)]
    if shape.norm_bias:
        tensors.append(ParameterTensor(at + "bias", width))
    return tensors
