"""What is recommended for shipped configurations is what their authors ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.training.tp_overlap_presets import presets_like
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.explain.report import explain
from overlapkit.plan.advise.proposal import Proposal
from overlapkit.plan.advise.recommend import recommend_settings
from overlapkit.plan.cluster import cluster_of
from overlapkit.plan.estimate.costs import Costs, costs_of_run

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
