"""Flags of Megatron-LM that depend on each other, and what it fills in from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from overlapkit.config.megatron_lm.flags import CHUNK_LAYERS, CHUNKS, DEFAULTS
from overlapkit.errors import InputError

if TYPE_CHECKING:
    from overlapkit.config.megatron_lm.arguments import Arguments

TE_GRAPHS = "transformer_engine"
"""--cuda-graph-impl of Transformer Engine's graphs."""
SWIGLU_MULTIPLE = 64
"""Megatron-LM's default feed-forward size with --swiglu is a multiple of this."""


def settle(result: Arguments) -> None:
    """Flags that depend on each other, and what Megatron-LM fills in."""
    flags, values, defaults = result.flags, result.values, result.defaults
    defaults.update(DEFAULTS)
    defaults.update(result.dialect.defaults(flags))
    for one, other in ((CHUNK_LAYERS, CHUNKS), ("--bf16", "--fp16")):
        if one in flags and other in flags:
            raise InputError(
                f"{result.places[other].in_messages}: {one} and {other} exclude each other"
            )
    if CHUNK_LAYERS in flags and "--num-layers" not in flags and not result.whole:
        result.notes.append(
            f"{result.places[CHUNK_LAYERS].in_messages}: {CHUNK_LAYERS} {flags[CHUNK_LAYERS]} is "
            "not read: --num-layers is not in this file, so the number of chunks is not known"
        )
    elif CHUNK_LAYERS in flags:
        key = "model.virtual_pipeline_model_parallel_size"
        values[key] = _chunks(values, flags[CHUNK_LAYERS], result.places[CHUNK_LAYERS].in_messages)
        result.where[key] = result.places[CHUNK_LAYERS]
    if "--group-query-attention" not in flags and "--num-query-groups" in flags:
        del values["model.num_query_groups"]
        result.notes.append(
            "--num-query-groups is used only with --group-query-attention, which is not given"
        )
    elif "--group-query-attention" in flags:
        defaults["model.num_query_groups"] = 1
    for old, graphs in (("--enable-cuda-graph", "local"), ("--external-cuda-graph", TE_GRAPHS)):
        if old in flags and "--cuda-graph-impl" not in flags:
            values["model.cuda_graph_impl"] = graphs
            result.where["model.cuda_graph_impl"] = result.places[old]
    if "--recompute-activations" in flags:
        values["model.recompute_granularity"] = "selective"
        result.where["model.recompute_granularity"] = result.places["--recompute-activations"]
    if "--use-rotary-position-embeddings" in flags:
        defaults["model.position_embedding_type"] = "rope"
    hidden = values.get("model.hidden_size")
    if "--swiglu" in flags and hidden:
        # Two thirds of 4 x hidden: the three matrices then have as many weights as the usual two.
        defaults["model.ffn_hidden_size"] = (
            int(hidden * 4 * 2 / 3 / SWIGLU_MULTIPLE) * SWIGLU_MULTIPLE
        )
    dtype = "torch.bfloat16" if "--bf16" in flags else "torch.float16" if "--fp16" in flags else ""
    if dtype:
        for key in ("model.params_dtype", "model.pipeline_dtype", "optimizer.params_dtype"):
            defaults[key] = dtype
    if "--use-checkpoint-args" in flags:
        result.notes.append(
            "--use-checkpoint-args: the model's sizes come from the checkpoint, which is not read"
        )
    for key, value in result.dialect.settled(flags).items():
        values.pop(key, None)
        result.where.pop(key, None)
        defaults[key] = value


def _chunks(values: dict[str, Any], layers_of_chunk: int, where: str) -> int | None:
    """The virtual pipeline size: layers of a stage over layers of a chunk.

    Where they do not divide it is rounded down, and the rule about that speaks; None where that
    leaves less than two chunks.

    Raises:
        InputError: --num-layers is missing, or a size is below 1.
    """
    layers = values.get("model.num_layers")
    stages = values.get("model.pipeline_model_parallel_size") or 1
    if not layers or layers_of_chunk < 1 or stages < 1:
        raise InputError(
            f"{where}: {CHUNK_LAYERS} {layers_of_chunk}: needs --num-layers, and sizes above 0"
        )
    for key in (
        "model.account_for_embedding_in_pipeline_split",
        "model.account_for_loss_in_pipeline_split",
    ):
        layers += bool(values.get(key))
    chunks = int(layers // stages // layers_of_chunk)
    return chunks if chunks > 1 or layers == stages * layers_of_chunk else None
