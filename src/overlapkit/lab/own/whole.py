"""Settings of what the user's run is compared with: unpartitioned, in fp32, without overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from overlapkit.lab.scenario import DESCENT, NO_OVERLAP, Settings, layered

_LAYOUT = frozenset(
    {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "context_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "sequence_parallel",
        "pipeline_model_parallel_layout",
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "num_layers_per_virtual_pipeline_stage",
        "account_for_embedding_in_pipeline_split",
        "account_for_loss_in_pipeline_split",
        "microbatch_group_size_per_vp_stage",
        "overlap_p2p_comm",
        "batch_p2p_comm",
        "batch_p2p_sync",
        "overlap_p2p_comm_warmup_flush",
        "defer_embedding_wgrad_compute",
        "wgrad_deferral_limit",
        "delay_wgrad_compute",
        "deallocate_pipeline_outputs",
        "overlap_moe_expert_parallel_comm",
        "moe_shared_expert_overlap",
        "cp_comm_type",
        "hierarchical_context_parallel_sizes",
    }
)
"""Keys of `model` that partition it, or that say how its parts communicate."""

_PRECISION = frozenset(
    {"bf16", "fp16", "params_dtype", "pipeline_dtype", "autocast_dtype", "enable_autocast"}
)

EXACT: Settings = layered(DESCENT, {"optimizer": {"clip_grad": 0.0}})
"""Plain descent without clipping: a wrong gradient shows in the weights by its full size."""

_WAITS: Settings = {
    "comm_overlap": {
        "overlap_p2p_comm": False,
        "batch_p2p_comm": False,
        "overlap_param_gather_with_optimizer_step": False,
    },
    "ddp": {"overlap_grad_reduce": False, "overlap_param_gather": False},
    "optimizer": {"overlap_param_gather_with_optimizer_step": False},
}


def partitioned(settings: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The small run as it is compared: with plain descent."""
    return layered(settings, EXACT)


def unpartitioned(settings: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The same model on the same data in one process."""
    model = {
        key: value
        for key, value in settings.get("model", {}).items()
        if key not in _LAYOUT and not key.startswith("tp_comm_")
    }
    kept = {
        "model": model,
        "train": dict(settings.get("train", {})),
        "comm_overlap": {"tp_comm_overlap": False},
    }
    if settings.get("mixed_precision"):
        kept["mixed_precision"] = dict(settings["mixed_precision"])
    return layered(kept, EXACT)


def in_fp32(settings: Settings) -> Settings:
    """The same run in fp32."""
    kept = {key: dict(content) for key, content in settings.items() if key != "mixed_precision"}
    kept["model"] = {k: v for k, v in kept.get("model", {}).items() if k not in _PRECISION}
    return kept


def half_precision(settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it computes in bf16 or fp16."""
    precision = settings.get("mixed_precision") or {}
    model = settings.get("model") or {}
    return any(source.get(key) for source in (precision, model) for key in ("bf16", "fp16"))


def without_overlap(settings: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The same run, with every communication waited for."""
    given = layered(settings, _WAITS)
    if settings.get("comm_overlap"):
        return layered(given, NO_OVERLAP)
    # It says in its own sections what it overlaps, and a new one would choose defaults.
    p2p = dict.fromkeys(("overlap_p2p_comm", "batch_p2p_comm"), False)
    return layered({k: v for k, v in given.items() if k != "comm_overlap"}, {"model": p2p})


def adds_in_another_order(settings: Mapping[str, Mapping[str, Any]], ranks: int) -> bool:
    """Whether it adds numbers in another order than the unpartitioned model does."""
    model = settings.get("model", {})
    tp = model.get("tensor_model_parallel_size") or 1
    pp = model.get("pipeline_model_parallel_size") or 1
    replicas = ranks > tp * pp
    # The two ends of a pipeline each have a gradient of weights that they share.
    two_ends = pp > 1 and (model.get("share_embeddings_and_output_weights") is not False)
    return tp > 1 or replicas or two_ends or bool(model.get("num_moe_experts"))
