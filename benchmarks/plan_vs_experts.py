"""How often `overlapkit plan` recommends what experts ship for the same model, layout and GPU.

    uv run python benchmarks/plan_vs_experts.py [--all]

Four settings are compared: CUDA_DEVICE_MAX_CONNECTIONS, whether TP overlap is on, the userbuffers
preset, and whether the overlap of the experts' exchange is on. The cases:

- run configurations as Megatron-Bridge 0.3.1 writes them (tests/data/bridge_configs), on H100;
- the userbuffers presets (tests/data/tp_userbuffers_presets.json), whose names state the model's
  width, GPU, precision, TP, CP, micro-batch and sequence that they were tuned for;
- the facts of Megatron-Bridge 0.3.1's recipes (tests/data/bridge_recipes.json), on H100, which
  their presets were made for. Recipes with a comm_overlap section are compared; with --all also
  those without one, which keep TP overlap off without deciding about it;
- the performance recipes for mixtures of experts of Megatron-Bridge's main
  (benchmarks/data/bridge_performance_recipes.json), by the overlap of the experts' exchange.

A recipe's facts and a preset's name do not include every size of the model. For them the experts'
overlap is therefore decided without an estimate of the step. What experts ship for
CUDA_DEVICE_MAX_CONNECTIONS is what Megatron-Bridge's launch plugin computes from the shipped
settings. Every disagreement is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published_recipes import pipeline_split

from megatron.bridge.recipes.launch_env import CONNECTIONS
from megatron.bridge.training.tp_overlap_presets import (
    PRESETS,
    parse_preset_name,
    presets_like,
)
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.explain.report import explain
from overlapkit.plan.advise.draft import EP_OVERLAP
from overlapkit.plan.advise.proposal import Proposal
from overlapkit.plan.advise.recommend import recommend_settings
from overlapkit.plan.cluster import cluster_of, plan_assumptions
from overlapkit.plan.estimate.costs import Costs, costs_of_run
from overlapkit.plan.inputs import PRECISIONS, recipe_of

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
PERFORMANCE = Path(__file__).resolve().parent / "data" / "bridge_performance_recipes.json"
SHAPES = Path(__file__).resolve().parent / "data" / "model_shapes.json"
EXPERTS = f"model.{EP_OVERLAP}"
SETTINGS = (CONNECTIONS, "TP overlap", "preset", "EP overlap")
Choices = tuple[str | None, bool | None, frozenset[str] | None, bool | None]
"""Values of `SETTINGS`; None where a case does not say."""


@dataclass(frozen=True)
class Case:
    """One expert's choice.

    Attributes:
        name: of the configuration or recipe.
        settings: the run, its layout included.
        world_size: GPUs: a multiple of the layout's.
        gpu: what it was made for.
        shipped: what was chosen; a preset is the set of names with its settings.
        complete: whether every size of the model is known, so that its step can be estimated.
    """

    name: str
    settings: Settings
    world_size: int
    gpu: str
    shipped: Choices
    complete: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="recipes without comm_overlap as well")
    options = parser.parse_args()
    sources = {
        "run configurations": list(_configurations()),
        "presets by their names": list(_presets()),
        "recipes with a comm_overlap section": list(_recipes(decided=True)),
        "performance recipes for mixtures of experts": list(_performance()),
    }
    if options.all:
        sources["recipes without one"] = list(_recipes(decided=False))
    agreed = dict.fromkeys(SETTINGS, 0)
    compared = dict.fromkeys(SETTINGS, 0)
    every = total = 0
    for source, cases in sources.items():
        agreeing = 0
        for case in cases:
            told = [
                (name, shipped, planned)
                for name, shipped, planned in zip(
                    SETTINGS, case.shipped, _planned(case), strict=True
                )
                if shipped is not None
            ]
            differing = [one for one in told if not _agree(*one[1:])]
            for name, shipped, planned in told:
                compared[name] += 1
                agreed[name] += _agree(shipped, planned)
            agreeing += not differing
            if differing:
                said = (f"{n}: shipped {_shown(a)}, planned {_shown(b)}" for n, a, b in differing)
                print(f"  {case.name} on {case.gpu}: {'; '.join(said)}")
        print(f"{source}: {agreeing} of {len(cases)} agree in all settings")
        every, total = every + agreeing, total + len(cases)
    for name, count in agreed.items():
        print(f"{name}: {count} of {compared[name]} ({count / compared[name]:.1%})")
    switches, of = sum(agreed.values()), sum(compared.values())
    print(f"settings: {switches} of {of} ({switches / of:.1%}); goal 95 %")
    print(f"cases that agree in all settings: {every} of {total} ({every / total:.1%})")
    return 0


def _planned(case: Case) -> Choices:
    cluster = cluster_of(case.gpu, case.world_size)

    def costs_of(proposal: Proposal) -> Costs | str:
        if not case.complete:
            return "sizes that the estimate needs are not known"
        return costs_of_run(proposal.run, case.world_size, cluster.machine)

    proposal, _ = recommend_settings(case.settings, cluster, costs_of)
    name = proposal.preset.name if proposal.preset is not None else None
    return (
        next(v.value for v in proposal.report.launch_env if v.name == CONNECTIONS),
        bool(proposal.effective("model.tp_comm_overlap")),
        frozenset([name] if name else []),
        bool(proposal.effective(EXPERTS)),
    )


def _agree(shipped: object, planned: object) -> bool:
    if isinstance(shipped, frozenset) and isinstance(planned, frozenset):
        # Some presets have the same settings under several names.
        return bool(shipped & planned) or shipped == planned
    return shipped == planned


def _shown(value: object) -> str:
    if isinstance(value, frozenset):
        return " or ".join(sorted(value)) or "none"
    return str(value)


def _shipped(settings: Settings, world_size: int, gpu: str) -> Choices:
    report = explain(settings, world_size, plan_assumptions(gpu))
    on = bool(report.effective["model.tp_comm_overlap"])
    config = report.effective["model.tp_comm_overlap_cfg"] if on else None
    return (
        next(v.value for v in report.launch_env if v.name == CONNECTIONS),
        on,
        frozenset(key.name for key in presets_like(config)) if config else frozenset(),
        bool(report.effective[EXPERTS]),
    )


def _configurations() -> Iterator[Case]:
    for file in sorted((DATA / "bridge_configs").glob("*.yaml")):
        settings = read_settings(read_yaml(file))
        model = settings.values["model"] or {}
        ranks = 1
        for name in ("tensor_model", "pipeline_model", "context", "expert_model"):
            ranks *= model.get(f"{name}_parallel_size") or 1
        world_size = max(ranks, 8)
        shipped = _shipped(settings, world_size, "h100")
        yield Case(file.stem, settings, world_size, "h100", shipped, complete=True)


def _presets() -> Iterator[Case]:
    for name in PRESETS:
        key = parse_preset_name(name)
        data: dict[str, Any] = {
            "model": _model(
                key.hidden_size,
                key.tensor_parallel_size,
                key.context_parallel_size,
                key.seq_length,
            ),
            "train": {"micro_batch_size": key.micro_batch_size, "global_batch_size": 256},
            "mixed_precision": PRECISIONS[key.precision],
        }
        if key.lora:
            data["peft"] = {"dim": 16}
        world_size = 2 * key.tensor_parallel_size * key.context_parallel_size
        data["comm_overlap"] = {"tp_comm_overlap": True, "tp_comm_overlap_cfg": name}
        settings = read_settings(Document(name, data))
        shipped = _shipped(settings, world_size, key.gpu)
        yield Case(name, settings, world_size, key.gpu, shipped)


def _model(hidden: int, tp: int, cp: int, sequence: int) -> dict[str, Any]:
    return {
        "num_layers": 96,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 128,
        "vocab_size": 128256,
        "seq_length": sequence,
        "tensor_model_parallel_size": tp,
        "context_parallel_size": cp,
        "sequence_parallel": tp > 1,
    }


def _recipes(*, decided: bool) -> Iterator[Case]:
    recipes = json.loads((DATA / "bridge_recipes.json").read_text())["recipes"]
    for r in recipes:
        if r["has_comm_overlap"] is not decided:
            continue
        model = _model(r["hidden_size"], r["tp"], r["cp"], r["seq_length"])
        model |= {
            "num_attention_heads": 64,
            "pipeline_model_parallel_size": r["pp"],
            "virtual_pipeline_model_parallel_size": r["vp"],
            "expert_model_parallel_size": r["ep"],
            "sequence_parallel": r["sequence_parallel"],
        }
        if r["moe"]:
            model |= {"num_moe_experts": 128, "moe_ffn_hidden_size": 1024, "moe_router_topk": 8}
            model["expert_tensor_parallel_size"] = r["expert_tp"]
            model["moe_token_dispatcher_type"] = r["dispatcher"] or "alltoall"
        if r["hybrid"]:
            model["is_hybrid_model"] = True
        data: dict[str, Any] = {
            "model": model,
            "train": {"micro_batch_size": r["micro_batch"], "global_batch_size": 1024},
            "mixed_precision": "bf16_mixed",
        }
        comm: dict[str, Any] = {"tp_comm_overlap": r["tp_comm_overlap"]}
        if r["preset"]:
            comm["tp_comm_overlap_cfg"] = r["preset"]
        data["comm_overlap"] = comm
        settings = read_settings(Document(r["recipe"], data))
        world_size = max(r["tp"] * r["pp"] * r["cp"] * r["ep"], 8)
        yield Case(
            r["recipe"], settings, world_size, "h100", _shipped(settings, world_size, "h100")
        )


def _performance() -> Iterator[Case]:
    shapes = json.loads(SHAPES.read_text())["models"]
    for r in json.loads(PERFORMANCE.read_text())["recipes"]:
        model = shapes[r["model"]] | {
            "tensor_model_parallel_size": r["tp"],
            "pipeline_model_parallel_size": r["pp"],
            "virtual_pipeline_model_parallel_size": r["vp"],
            "context_parallel_size": r["cp"],
            "expert_model_parallel_size": r["ep"],
            "expert_tensor_parallel_size": 1,
            "sequence_parallel": r["tp"] > 1,
            "moe_token_dispatcher_type": r["dispatcher"],
        }
        if r["backend"]:
            model["moe_flex_dispatcher_backend"] = r["backend"]
        split = pipeline_split(r["model"], model, r["pp"], r["vp"] or 1)
        model |= split
        data = {
            "model": model,
            "ddp": {"use_distributed_optimizer": True},
            "train": {"micro_batch_size": r["mbs"], "global_batch_size": r["gbs"]},
            "mixed_precision": recipe_of(r["precision"]),
        }
        name = f"{r['model']} {r['precision']} {r['gpus']} GPUs ({r['version']})"
        yield Case(
            name,
            read_settings(Document(name, data)),
            r["gpus"],
            r["gpu"],
            (None, None, None, r["ep_overlap"]),
            complete=not r["own_split"] or "pipeline_model_parallel_layout" in split,
        )


if __name__ == "__main__":
    sys.exit(main())
