"""Every configuration that explain reads becomes a small one with the same decisions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given

from megatron.bridge.training.decisions import STOPS, Outcome
from overlapkit.config.effective import EFFECTIVE_KNOBS
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.sources import read_configuration
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Report, explain
from overlapkit.lab.own.reduced import Reduced
from overlapkit.lab.own.shrink import RANKS, shrink
from overlapkit.translate.translation import smallest_job
from support.drawn_configurations import configurations
from support.property_tests import examples
from support.sound_layouts import sound_layout

ROOT = Path(__file__).resolve().parents[4]
DATA = ROOT / "tests" / "data"
BRIDGE = sorted((DATA / "bridge_configs").glob("*.yaml"))
SCRIPTS = sorted((DATA / "megatron_lm").glob("*.sh"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
NOT_GPT = ("custom_t5_220m_provider", "nemotronh_8b_pretrain_config")
SEVERAL_LAUNCHES = ("two_launches",)
DIMENSIONS = ("TP", "DP", "PP", "EP")
MODEL = {"num_layers": 16, "hidden_size": 1024, "num_attention_heads": 16, "vocab_size": 32000}
ASSUMPTIONS = assume(None, None, None, {})

TRAINABLE = [p for p in (*BRIDGE, *SCRIPTS, *EXAMPLES) if p.stem not in NOT_GPT + SEVERAL_LAUNCHES]


def explained(path: Path) -> tuple[Settings, Report, Reduced, Report]:
    """A configuration and what is reduced of it, both explained for the same versions."""
    settings = read_configuration(str(path))
    size = (settings.launch.world_size if settings.launch else None) or smallest_job(settings)
    reduced = shrink(settings)
    small = read_settings(Document("reduced", reduced.settings))
    return (
        settings,
        explain(settings, size, ASSUMPTIONS, other_versions=False),
        reduced,
        explain(
            replace(small, stacks=settings.stacks), reduced.ranks, ASSUMPTIONS, other_versions=False
        ),
    )


def decisions(report: Report) -> set[tuple[str, str, Outcome]]:
    """What the rules of parallelism decided."""
    return {
        (d.rule, d.knob, d.outcome) for d in report.decisions if d.dimension.value in DIMENSIONS
    }


def is_said(knob: str, reduced: Reduced) -> bool:
    """Whether something about a knob, or about the knob that it belongs to, was written down."""
    keys = [change.what for change in reduced.changed]
    keys += [text.partition(":")[0] for text in reduced.unproven]
    said = {key.rpartition(".")[2] for key in keys}
    parts = knob.split(".")
    belongs = {"tp_comm_overlap_cfg": "tp_comm_overlap", "overlap_param_gather": "fp8_param_gather"}
    if any("optimizer.optimizer" in key for key in keys) and parts[0] == "ddp":
        return True
    return any(part in said or belongs.get(part) in said for part in parts)


@pytest.mark.parametrize("path", TRAINABLE, ids=lambda path: path.stem)
def test_the_rules_decide_the_same_of_the_reduced_configuration(path: Path) -> None:
    settings, before, reduced, after = explained(path)
    for knob in EFFECTIVE_KNOBS:
        if before.effective[knob] != after.effective[knob] and not knob.endswith("parallel_size"):
            assert is_said(knob, reduced), knob
    if settings.framework == "megatron-lm":
        # Its rules have other names than those of Megatron-Bridge, which is what trains.
        return
    for rule, knob, outcome in decisions(before) ^ decisions(after):
        assert is_said(knob, reduced), (rule, knob, outcome)


@pytest.mark.parametrize("path", TRAINABLE, ids=lambda path: path.stem)
def test_what_overlaps_is_kept_within_the_ranks(path: Path) -> None:
    _, before, reduced, after = explained(path)
    old, new = before.run.model, after.run.model
    assert 2 <= reduced.ranks <= RANKS
    tp, pp = new.tensor_model_parallel_size, new.pipeline_model_parallel_size
    assert reduced.ranks == tp * pp * after.data_parallel_size
    assert (old.pipeline_model_parallel_size > 1) == (pp > 1)
    assert (old.expert_model_parallel_size > 1) == (new.expert_model_parallel_size > 1)
    assert (before.effective["model.virtual_pipeline_model_parallel_size"] or 1) > 1 or (
        not after.effective["model.virtual_pipeline_model_parallel_size"]
    )
    replicas = before.data_parallel_size * (old.context_parallel_size or 1)
    assert (replicas > 1) == (after.data_parallel_size > 1)
    assert new.hidden_size <= 64
    assert new.num_layers <= 24


@pytest.mark.parametrize("start", range(0, 120, 30))
def test_sound_layouts_stay_sound_and_decide_the_same(start: int) -> None:
    for seed in range(start, start + 30):
        sections, gpus = sound_layout(seed)
        settings = read_settings(Document("drawn", sections))
        before = explain(settings, gpus, ASSUMPTIONS, other_versions=False)
        if any(d.outcome in STOPS for d in before.decisions):
            continue
        try:
            reduced = shrink(settings, world_size=gpus)
        except InputError as nothing_left:
            assert "communicates" in str(nothing_left)
            continue
        small = read_settings(Document("reduced", reduced.settings))
        after = explain(small, reduced.ranks, ASSUMPTIONS, other_versions=False)
        assert not [d for d in after.decisions if d.outcome in STOPS], seed
        assert reduced.ranks <= RANKS
        for rule, knob, outcome in decisions(before) ^ decisions(after):
            assert is_said(knob, reduced), (seed, rule, knob, outcome)
        for text in reduced.unproven:
            enough = re.search(r"--ranks (\d+) keeps it", text)
            if enough:
                more = shrink(settings, world_size=gpus, ranks=int(enough[1]))
                assert not any("keeps it" in each for each in more.unproven), seed


@examples(100, 2000, suppress_health_check=list(HealthCheck))
@given(configurations)
def test_any_configuration_is_reduced_or_refused_in_one_line(drawn: dict[str, Any]) -> None:
    try:
        reduced = shrink(read_settings(Document("drawn", drawn)))
    except InputError as refused:
        assert "\n" not in str(refused)
        return
    read_settings(Document("reduced", reduced.settings))
    assert 2 <= reduced.ranks <= RANKS


@pytest.mark.parametrize(
    ("microbatches", "fewer"),
    [(1, 1), (4, 4), (8, 8), (10, 9)],
    ids=["fewer than stages", "as many", "twice as many", "no multiple"],
)
def test_microbatches_keep_their_relation_to_the_stages(microbatches: int, fewer: int) -> None:
    reduced = shrink(
        read_settings(
            Document(
                "four stages",
                {
                    "model": {**MODEL, "pipeline_model_parallel_size": 4},
                    "train": {"micro_batch_size": 1, "global_batch_size": 2 * microbatches},
                },
            )
        ),
        world_size=8,
    )
    assert reduced.settings["model"]["pipeline_model_parallel_size"] == 4
    assert reduced.settings["train"]["global_batch_size"] == 2 * fewer


def test_batched_interleaved_stages_stay_more_than_two() -> None:
    model = {
        **MODEL,
        "pipeline_model_parallel_size": 4,
        "virtual_pipeline_model_parallel_size": 2,
        "tensor_model_parallel_size": 2,
        "batch_p2p_comm": True,
        "overlap_p2p_comm": False,
    }
    reduced = shrink(read_settings(Document("batched", {"model": model})), world_size=16)
    assert reduced.settings["model"]["pipeline_model_parallel_size"] > 2
    assert any(text.startswith("tensor parallelism") for text in reduced.unproven)


def test_an_unknown_knob_is_named_as_not_trained() -> None:
    model = {**MODEL, "use_mup": True}
    reduced = shrink(read_settings(Document("mup", {"model": model})), world_size=2)
    assert "model.use_mup: the lab does not know it: not trained" in reduced.unproven


@pytest.mark.parametrize("name", NOT_GPT)
def test_other_models_are_refused_in_one_line(name: str) -> None:
    settings = read_configuration(str(DATA / "bridge_configs" / f"{name}.yaml"))
    with pytest.raises(InputError, match="the lab trains GPT models") as refused:
        shrink(settings)
    assert "\n" not in str(refused.value)


def test_outputs_that_gloo_still_sends_are_not_freed() -> None:
    interleaved = explained(DATA / "megatron_lm" / "llama3_70b_slurm.sh")[2]
    assert interleaved.settings["model"]["deallocate_pipeline_outputs"] is False
    assert any("deallocate_pipeline_outputs" in each for each in interleaved.unproven)
