"""A user's configuration, reduced to train here: layout and knobs are kept, sizes shrink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overlapkit.config.run import Run, build_run
from overlapkit.config.sources import read_configuration
from overlapkit.errors import InputError
from overlapkit.lab.corpus import VOCABULARY

MOST_RANKS = 8
"""Processes; a layout that needs more cannot be trained here."""

LARGEST = 20_000_000
"""Parameters. Larger configurations are trained with the lab's own sizes."""

LONGEST = 512
"""Tokens. Configurations with longer sequences are trained with the lab's own sizes."""

HEADS = 8
CHANNELS = 32
SEQUENCE = 128
LAYERS = 4
"""Sizes of the model that replaces a large one: heads, channels of each, tokens and layers."""

_LAYOUT = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "sequence_parallel",
)
_KNOBS = (
    "tp_comm_overlap",
    "overlap_p2p_comm",
    "batch_p2p_comm",
    "defer_embedding_wgrad_compute",
    "wgrad_deferral_limit",
    "overlap_p2p_comm_warmup_flush",
    "normalization",
    "position_embedding_type",
    "add_bias_linear",
    "share_embeddings_and_output_weights",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
)
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "seq_length")
_NOT_ON_CPU = {
    "context_parallel_size": "context parallelism needs the attention of Transformer Engine",
    "expert_model_parallel_size": "the lab does not train experts",
}


@dataclass(frozen=True)
class UserConfig:
    """The part of a configuration that is trained here.

    Attributes:
        settings: the sections to train with.
        ranks: number of ranks for its layout, with data parallelism of 2.
        changed: what was changed, and why, in words.
    """

    settings: dict[str, dict[str, Any]]
    ranks: int
    changed: tuple[str, ...]


def read(path: str) -> UserConfig:
    """The configuration in a file, reduced to what trains on a few CPU ranks.

    Raises:
        InputError: it cannot be read, it is not Megatron-Bridge's, or its layout needs more than 8
            ranks.
    """
    settings = read_configuration(path)
    if settings.framework != "megatron-bridge":
        raise InputError(
            f"{path}: the lab trains with Megatron-Bridge's configuration; write one with "
            f"overlapkit plan --from-megatron-lm {path} --gpu NAME --emit yaml"
        )
    run = build_run(settings)
    given = {section: dict(content or {}) for section, content in settings.values.items()}
    tp = run.model.tensor_model_parallel_size
    pp = run.model.pipeline_model_parallel_size
    ranks = tp * pp * 2
    if ranks > MOST_RANKS:
        raise InputError(
            f"{path}: TP={tp} x PP={pp} x DP=2 needs {ranks} processes; the lab trains with at "
            f"most {MOST_RANKS}: reduce the layout in a copy of the file"
        )
    changed = [
        f"{key}={getattr(run.model, key)} -> 1: {why}"
        for key, why in _NOT_ON_CPU.items()
        if (getattr(run.model, key, None) or 1) > 1
    ]
    model, changes = _model(run, given.get("model", {}))
    changed += changes
    precision, changes = _precision(run, given.get("mixed_precision", {}))
    changed += changes
    sections: dict[str, dict[str, Any]] = {
        "model": model,
        "ddp": _plain(given.get("ddp", {})),
        "optimizer": {
            "use_distributed_optimizer": bool(run.optimizer.use_distributed_optimizer),
        },
        "train": {"micro_batch_size": 2, "global_batch_size": 4 * max(2, pp * 2)},
    }
    if precision:
        sections["mixed_precision"] = precision
    if "comm_overlap" in given and settings.values["comm_overlap"] is not None:
        sections["comm_overlap"] = _plain(given["comm_overlap"])
    return UserConfig(sections, ranks, tuple(changed))


def _model(run: Run, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The section `model`, and what was changed in it."""
    model = {key: given[key] for key in (*_LAYOUT, *_KNOBS) if given.get(key) is not None}
    sizes = {key: getattr(run.model, key, None) for key in _SIZES}
    if _small(sizes, run.model.vocab_size):
        model |= {key: value for key, value in sizes.items() if value}
        model["vocab_size"] = max(VOCABULARY, run.model.vocab_size or 0)
        return model, []
    heads = max(HEADS, run.model.tensor_model_parallel_size)
    stages = run.model.pipeline_model_parallel_size * (
        run.model.virtual_pipeline_model_parallel_size or 1
    )
    model |= {
        "num_layers": stages * max(1, LAYERS // stages),
        "hidden_size": heads * CHANNELS,
        "num_attention_heads": heads,
        "seq_length": SEQUENCE,
    }
    return model, [
        f"sizes: {model['num_layers']} layers of {model['hidden_size']}, sequences of {SEQUENCE}, "
        "so that a step takes a fraction of a second"
    ]


def _precision(run: Run, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The section `mixed_precision`, empty for none, and what was changed in it."""
    requested = run.mixed_precision
    if requested is None or not (requested.fp8 or requested.fp4):
        return given, []
    return {
        "bf16": True,
        "params_dtype": "bfloat16",
        "grad_reduce_in_fp32": requested.grad_reduce_in_fp32,
    }, ["mixed_precision: bf16 instead of FP8, which needs Transformer Engine"]


def _small(sizes: dict[str, Any], vocab_size: int | None) -> bool:
    """Whether a step of these sizes takes a fraction of a second on a CPU."""
    layers, hidden = sizes["num_layers"], sizes["hidden_size"]
    if not layers or not hidden or not sizes["num_attention_heads"]:
        return False
    matrices = 12 * layers * hidden * hidden + 2 * (vocab_size or 0) * hidden
    return matrices <= LARGEST and (sizes["seq_length"] or 0) <= LONGEST


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """The values that a rank can be given: switches, numbers and names."""
    return {k: v for k, v in content.items() if isinstance(v, bool | int | float | str)}
