"""Every configuration that explain reads becomes a small one with the same decisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

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

ROOT = Path(__file__).resolve().parents[4]
DATA = ROOT / "tests" / "data"
BRIDGE = sorted((DATA / "bridge_configs").glob("*.yaml"))
SCRIPTS = sorted((DATA / "megatron_lm").glob("*.sh"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
NOT_GPT = ("custom_t5_220m_provider", "nemotronh_8b_pretrain_config")
SEVERAL_LAUNCHES = ("two_launches",)
DIMENSIONS = ("TP", "DP", "PP", "EP")
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
    decided = [
        {(d.rule, d.knob, d.outcome) for d in each.decisions if d.dimension.value in DIMENSIONS}
        for each in (before, after)
    ]
    for rule, knob, outcome in decided[0] ^ decided[1]:
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


@pytest.mark.parametrize("name", NOT_GPT)
def test_other_models_are_refused_in_one_line(name: str) -> None:
    settings = read_configuration(str(DATA / "bridge_configs" / f"{name}.yaml"))
    with pytest.raises(InputError, match="the lab trains GPT models") as refused:
        shrink(settings)
    assert "\n" not in str(refused.value)
