"""The case that a user's configuration is, so that a hunt can vary its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from overlapkit.lab.hunt.case import P2P_MODES, RECOMPUTE, Case
from overlapkit.lab.own.shrink import Reduced
from overlapkit.lab.scenario import DESCENT, Settings, layered
from overlapkit.lab.scenarios.grid import BUCKETS, OVERLAPS

_MODEL_KEYS: Mapping[str, str] = {
    "tp": "tensor_model_parallel_size",
    "sp": "sequence_parallel",
    "pp": "pipeline_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "group": "microbatch_group_size_per_vp_stage",
    "deallocate": "deallocate_pipeline_outputs",
    "variable": "variable_seq_lengths",
    "distribute": "distribute_saved_activations",
    "tied": "share_embeddings_and_output_weights",
    "gated": "gated_linear_unit",
    "qk_norm": "qk_layernorm",
    "bias": "add_bias_linear",
    "post": "apply_residual_connection_post_layernorm",
    "topk": "moe_router_topk",
    "mtp": "mtp_num_layers",
}


def case_of(reduced: Reduced) -> Case:
    """The features of a configuration that was made small; those that it does not set are simple.

    Args:
        reduced: from `overlapkit.lab.own.shrink.shrink`.
    """
    model: Mapping[str, Any] = reduced.settings.get("model", {})
    train: Mapping[str, Any] = reduced.settings.get("train", {})
    found: dict[str, Any] = {
        name: model[key] for name, key in _MODEL_KEYS.items() if model.get(key) is not None
    }
    tp, pp = found.get("tp", 1), found.get("pp", 1)
    found["dp"] = dp = max(1, reduced.ranks // (tp * pp))
    found["micro_batch"] = size = train.get("micro_batch_size") or 1
    found["microbatches"] = max(1, (train.get("global_batch_size") or size * dp) // (size * dp))
    layers = model.get("num_layers") or tp * pp
    found["depth"] = max(1, layers // (pp * found.get("vpp", 1)))
    found["rms"] = model.get("normalization") == "RMSNorm"
    found["rope"] = model.get("position_embedding_type") == "rope"
    if model.get("num_moe_experts"):
        found["experts"] = model.get("moe_token_dispatcher_type") or "allgather"
        found["shared"] = bool(model.get("moe_shared_expert_intermediate_size"))
        found["balance"] = model.get("moe_router_load_balancing_type") or "aux_loss"
    if pp > 1 and model.get("pipeline_model_parallel_layout"):
        found["stages"] = "layout"
    precision = reduced.settings.get("mixed_precision", {})
    if precision.get("bf16"):
        in_fp32 = precision.get("grad_reduce_in_fp32", True)
        found["precision"] = "bf16" if in_fp32 else "bf16-grads"
    found["recompute"] = _recompute(model)
    return Case(**found, steps=2, **_overlap(reduced.settings))


def base_of(reduced: Reduced) -> Settings:
    """The settings that features are written over, trained by plain descent."""
    return layered(reduced.settings, DESCENT)


def _recompute(model: Mapping[str, Any]) -> str:
    granularity = model.get("recompute_granularity")
    if granularity == "full":
        return "block" if model.get("recompute_method") == "block" else "uniform"
    if granularity == "selective":
        modules = model.get("recompute_modules") or ["core_attn"]
        return modules[0] if modules[0] in RECOMPUTE else "core_attn"
    return "none"


def _overlap(settings: Settings) -> dict[str, Any]:
    """Features of data-parallel and pipeline communication."""
    knobs: dict[str, Any] = {}
    for section in ("model", "ddp", "optimizer", "comm_overlap"):
        knobs |= {k: v for k, v in settings.get(section, {}).items() if v is not None}
    found: dict[str, Any] = {"distributed": bool(knobs.get("use_distributed_optimizer"))}
    instances = knobs.get("num_distributed_optimizer_instances")
    if instances:
        found["instances"] = instances
    found["average"] = bool(knobs.get("average_in_collective"))
    found["overlap"] = _matching(OVERLAPS, knobs, "off")
    found["p2p"] = _matching(P2P_MODES, knobs, "waiting")
    if knobs.get("bucket_size"):
        near = min(BUCKETS, key=lambda name: abs(BUCKETS[name] - knobs["bucket_size"]))
        found["bucket"] = near
    return found


def _matching(
    modes: Mapping[str, Mapping[str, bool]], knobs: Mapping[str, Any], otherwise: str
) -> str:
    """The mode whose switches are set as in the knobs; the last that fits is the most specific."""
    fits = [
        name
        for name, switches in modes.items()
        if all(bool(knobs.get(key)) == value for key, value in switches.items())
    ]
    return fits[-1] if fits else otherwise
