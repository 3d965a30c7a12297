"""A user's configuration made small enough to train here: layout and knobs stay, sizes shrink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overlapkit.config.run import build_run
from overlapkit.config.sources import read_configuration
from overlapkit.errors import InputError
from overlapkit.lab.corpus import VOCABULARY

LARGEST = 20_000_000
"""Parameters beyond which the lab's own sizes replace the configuration's on a CPU."""

HEADS = 8
CHANNELS = 32
"""Of a head, in the model that replaces a large one."""

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
    "context_parallel_size": "context parallelism needs Transformer Engine's attention",
    "expert_model_parallel_size": "experts are left out",
}


@dataclass(frozen=True)
class UserConfig:
    """What of a configuration is trained here.

    Attributes:
        settings: the sections to train with.
        ranks: the fewest ranks that its layout takes, with data parallelism of 2 where it asks
            for an overlap of gradients.
        changed: what was changed, and why, in words.
    """

    settings: dict[str, dict[str, Any]]
    ranks: int
    changed: tuple[str, ...]


def read(path: str) -> UserConfig:
    """The configuration in a file, cut down to what trains on a few ranks of a CPU.

    Raises:
        InputError: it cannot be read, or its layout takes more than 8 ranks.
    """
    settings = read_configuration(path)
    if settings.framework != "megatron-bridge":
        raise InputError(
            f"{path}: the lab trains with Megatron-Bridge's configuration; write one with "
            f"overlapkit plan --from-megatron-lm {path} --gpu NAME --emit yaml"
        )
    run = build_run(settings)
    given = {section: dict(content or {}) for section, content in settings.values.items()}
    changed: list[str] = []
    model = {
        key: given.get("model", {})[key]
        for key in (*_LAYOUT, *_KNOBS)
        if given.get("model", {}).get(key) is not None
    }
    for key, why in _NOT_ON_CPU.items():
        if (getattr(run.model, key, None) or 1) > 1:
            changed.append(f"{key}={getattr(run.model, key)} -> 1: {why}")
    tp = run.model.tensor_model_parallel_size
    pp = run.model.pipeline_model_parallel_size
    vpp = run.model.virtual_pipeline_model_parallel_size or 1
    ranks = tp * pp * 2
    if ranks > 8:
        raise InputError(
            f"{path}: TP={tp} x PP={pp} x DP=2 takes {ranks} processes; the lab trains with up to "
            "8: make the layout smaller, e.g. in a copy of the file"
        )
    shape = {key: getattr(run.model, key, None) for key in _SIZES}
    if _small(shape, run.model.vocab_size):
        model |= {key: value for key, value in shape.items() if value}
        model["vocab_size"] = max(VOCABULARY, run.model.vocab_size or 0)
    else:
        heads = max(HEADS, tp)
        stages = pp * vpp
        model |= {
            "num_layers": stages * max(1, 4 // stages),
            "hidden_size": heads * CHANNELS,
            "num_attention_heads": heads,
            "seq_length": 128,
        }
        changed.append(
            f"sizes: {model['num_layers']} layers of {model['hidden_size']}, sequences of 128, so "
            "that a step takes a fraction of a second"
        )
    precision = dict(given.get("mixed_precision") or {})
    if run.mixed_precision is not None and (run.mixed_precision.fp8 or run.mixed_precision.fp4):
        precision = {"bf16": True, "params_dtype": "bfloat16"}
        precision["grad_reduce_in_fp32"] = run.mixed_precision.grad_reduce_in_fp32
        changed.append("mixed_precision: FP8 needs Transformer Engine; bf16 instead")
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


def _small(shape: dict[str, Any], vocab_size: int | None) -> bool:
    layers, hidden = shape["num_layers"], shape["hidden_size"]
    if not layers or not hidden or not shape["num_attention_heads"]:
        return False
    matrices = 12 * layers * hidden * hidden + 2 * (vocab_size or 0) * hidden
    return matrices <= LARGEST and (shape["seq_length"] or 0) <= 512


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in content.items() if isinstance(v, bool | int | float | str)}
