"""What is recommended for shipped configurations is what their authors ship."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.training.tp_overlap_presets import presets_like
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.explain.report import explain
from overlapkit.plan.advise.proposal import Proposal
from overlapkit.plan.advise.recommend import recommend, recommend_settings
from overlapkit.plan.cluster import Cluster, cluster_of
from overlapkit.plan.estimate.costs import Costs, costs_of_run
from overlapkit.plan.estimate.overlap import EP
from overlapkit.plan.text import gained

DATA = Path(__file__).parents[3] / "data"
CONFIGS = sorted((DATA / "bridge_configs").glob("*.yaml"))
RECIPES = [
    recipe
    for recipe in json.loads((DATA / "bridge_recipes.json").read_text())["recipes"]
    if recipe["has_comm_overlap"] and not recipe["moe"] and recipe["sequence_parallel"]
]


def queues(variables: Any) -> str:
    return str(next(v.value for v in variables if v.name == CONNECTIONS))


def ranks_of(settings: Settings) -> int:
    model = settings.values["model"] or {}
    ranks = 1
    for name in ("tensor_model", "pipeline_model", "context", "expert_model"):
        ranks *= model.get(f"{name}_parallel_size") or 1
    return max(ranks, 8)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
@pytest.mark.parametrize("gpu", ["h100", "b200"])
def test_shipped_configurations(file: Path, gpu: str) -> None:
    settings = read_settings(read_yaml(file))
    cluster = cluster_of(gpu, ranks_of(settings))

    def costs_of(proposal: Proposal) -> Costs | str:
        return costs_of_run(proposal.run, cluster.world_size, cluster.machine)

    shipped = explain(settings, cluster.world_size, cluster.assumptions)
    proposal, _ = recommend_settings(settings, cluster, costs_of)
    assert queues(proposal.report.launch_env) == queues(shipped.launch_env)
    knob = "model.tp_comm_overlap"
    assert proposal.effective(knob) == shipped.effective[knob]
    config = shipped.effective["model.tp_comm_overlap_cfg"]
    if gpu == "h100" and shipped.effective[knob]:
        # The shipped presets are those of H100, whatever the GPU.
        names = {key.name for key in presets_like(config)} if config else {None}
        assert proposal.preset is not None and proposal.preset.name in names


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["recipe"])
def test_recipes_that_decide_about_tensor_overlap(recipe: dict[str, Any]) -> None:
    model = {
        "num_layers": 96,
        "hidden_size": recipe["hidden_size"],
        "num_attention_heads": 64,
        "seq_length": recipe["seq_length"],
        "tensor_model_parallel_size": recipe["tp"],
        "pipeline_model_parallel_size": recipe["pp"],
        "virtual_pipeline_model_parallel_size": recipe["vp"],
        "context_parallel_size": recipe["cp"],
        "is_hybrid_model": recipe["hybrid"],
    }
    data = {
        "model": model,
        "train": {"micro_batch_size": recipe["micro_batch"], "global_batch_size": 1024},
        "mixed_precision": "bf16_mixed",
    }
    settings = read_settings(Document(recipe["recipe"], data))
    proposal, _ = recommend_settings(settings, cluster_of("h100", ranks_of(settings)))
    assert proposal.effective("model.tp_comm_overlap") == recipe["tp_comm_overlap"]
    assert proposal.preset is not None and proposal.preset.name == recipe["preset"]


def mixture(comm: dict[str, Any] | None = None, **model: Any) -> Settings:
    """Qwen3 235B as Megatron-Bridge's recipe for 256 H100 divides it, with other settings."""
    sizes = {
        "num_layers": 94,
        "hidden_size": 4096,
        "ffn_hidden_size": 12288,
        "moe_ffn_hidden_size": 1536,
        "num_attention_heads": 64,
        "num_query_groups": 4,
        "num_moe_experts": 128,
        "moe_router_topk": 8,
        "moe_grouped_gemm": True,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "normalization": "RMSNorm",
        "vocab_size": 151936,
        "seq_length": 4096,
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "pipeline_model_parallel_size": 8,
        "virtual_pipeline_model_parallel_size": 4,
        "account_for_embedding_in_pipeline_split": True,
        "account_for_loss_in_pipeline_split": True,
        "expert_model_parallel_size": 32,
        "expert_tensor_parallel_size": 1,
        "moe_token_dispatcher_type": "alltoall",
    }
    data = {
        "model": sizes | model,
        "ddp": {"use_distributed_optimizer": True},
        "train": {"micro_batch_size": 1, "global_batch_size": 2048},
        "mixed_precision": "bf16_mixed",
        "comm_overlap": comm,
    }
    return read_settings(Document("qwen3", data))


ONE_STAGE = {
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
}
HYBRID_EP = {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "hybridep"}
DEEP_EP = {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "deepep"}


@pytest.mark.parametrize(
    ("gpu", "model", "why_not"),
    [
        ("h100", {}, None),
        ("h100", DEEP_EP, None),
        ("h100", {"expert_model_parallel_size": 8}, "within the NVLink domain"),
        ("gb200", {}, "within the NVLink domain"),
        ("h100", HYBRID_EP, "HybridEP"),
        ("h100", ONE_STAGE, "without a pipeline"),
    ],
)
def test_the_experts_exchange_is_hidden_where_recipes_hide_it(
    gpu: str, model: dict[str, Any], why_not: str | None
) -> None:
    settings = mixture(**model)
    cluster = cluster_of(gpu, 256)
    proposal, reason = recommend_settings(settings, cluster, costs_with(cluster))
    assert proposal.effective("model.overlap_moe_expert_parallel_comm") is (why_not is None)
    if why_not is None:
        assert reason is None
    else:
        assert reason is not None and why_not in reason
        assert "Megatron-Bridge's recipes keep the overlap off" in reason


def test_what_the_configuration_hides_stays_hidden() -> None:
    comm = {"tp_comm_overlap": False, "overlap_moe_expert_parallel_comm": True}
    requested = mixture(comm, expert_model_parallel_size=8)
    proposal, reason = recommend_settings(requested, cluster_of("h100", 256))
    assert reason is None and proposal.effective("model.overlap_moe_expert_parallel_comm")


SMALL = {
    "tensor_model_parallel_size": 1,
    "sequence_parallel": False,
    "pipeline_model_parallel_size": 2,
    "virtual_pipeline_model_parallel_size": 2,
    "expert_model_parallel_size": 8,
    "hidden_size": 512,
    "moe_ffn_hidden_size": 64,
}
"""Layers whose kernels are shorter than the host needs to start them."""


def test_an_overlap_that_costs_more_than_it_hides_is_to_be_turned_off() -> None:
    comm = {"tp_comm_overlap": False, "overlap_moe_expert_parallel_comm": True}
    cluster = cluster_of("h100", 16)
    full, short = (
        recommend(mixture(comm, **model), None, cluster, costs_with(cluster))
        for model in (SMALL | {"hidden_size": 8192, "moe_ffn_hidden_size": 8192}, SMALL)
    )
    (kept,), (off,) = ([d for d in r.dimensions if d.name == EP] for r in (full, short))
    assert full.gains[EP].seconds > 0 and kept.remedy is None
    assert short.gains[EP].seconds < 0 and off.on
    assert off.remedy is not None and "overlap_moe_expert_parallel_comm=false" in off.remedy
    assert gained(short.gains[EP]).startswith("costs ~") and "-" not in gained(short.gains[EP])


def costs_with(cluster: Cluster) -> Callable[[Proposal], Costs | str]:
    def costs_of(proposal: Proposal) -> Costs | str:
        return costs_of_run(proposal.run, cluster.world_size, cluster.machine)

    return costs_of


@pytest.mark.parametrize(("cp", "on"), [(1, True), (2, False), (8, False)])
def test_long_sequences_of_a_width_without_a_preset_have_no_tensor_overlap(
    cp: int, on: bool
) -> None:
    model = {
        "num_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "seq_length": 16384 * cp,
        "tensor_model_parallel_size": 4,
        "context_parallel_size": cp,
    }
    data = {
        "model": model,
        "train": {"micro_batch_size": 1, "global_batch_size": 64},
        "mixed_precision": "bf16_mixed",
    }
    proposal, _ = recommend_settings(read_settings(Document("8b", data)), cluster_of("h100", 32))
    assert proposal.effective("model.tp_comm_overlap") is on
    assert on or "recipes" in proposal.tensor.reason
