"""Layouts: which divide, which fit, and in which order they are shown."""

from __future__ import annotations

import re
from functools import cache

import pytest

from overlapkit.config.run import build_run
from overlapkit.errors import InputError
from overlapkit.plan.checks import faults
from overlapkit.plan.cluster import cluster_of, nvlink_domain
from overlapkit.plan.inputs import Inputs, read_inputs
from overlapkit.plan.plan import Plan, make_plan
from overlapkit.plan.search.candidates import (
    SWEPT,
    LayoutChoice,
    candidates,
    layout_in,
    parse_swept,
    sizes_of,
    uneven_layout,
    with_layout,
)
from overlapkit.plan.search.ranking import Ranking
from overlapkit.plan.search.sweep import sweep
from overlapkit.plan.text import sweep_header


def inputs_of(*overrides: str, model: str = "llama3_70b", world_size: int = 64) -> Inputs:
    return read_inputs(overrides, model=model, world_size=world_size)


@cache
def swept(*dimensions: str, overrides: tuple[str, ...] = (), gpu: str = "h100") -> Ranking:
    inputs = inputs_of(*overrides)
    return sweep(inputs.settings, cluster_of(gpu, inputs.world_size), dimensions, ranked=None)


def planned(inputs: Inputs, *, dimensions: tuple[str, ...] | None = None) -> Plan:
    cluster = cluster_of("h100", inputs.world_size, gpus_per_node=inputs.gpus_per_node)
    return make_plan(inputs, cluster, dimensions)


@pytest.mark.parametrize(
    ("model", "world_size"),
    [
        ("llama3_8b", 8),
        ("llama3_70b", 96),
        ("llama3_405b", 512),
        ("gpt3_175b", 128),
        ("deepseek_v3", 64),
    ],
)
def test_every_candidate_divides(model: str, world_size: int) -> None:
    inputs = inputs_of(model=model, world_size=world_size)
    run = build_run(inputs.settings)
    found = list(candidates(sizes_of(run.model, run.train), world_size, 8, layout_in(run), SWEPT))
    assert len(found) == len(set(found)) > 20
    for choice in found[::7]:
        changed = build_run(with_layout(inputs.settings, choice))
        assert list(faults(changed, world_size, 8)) == []
        assert layout_in(changed) == choice


def test_126_layers_divide_over_16_stages_with_embedding_and_loss_counted() -> None:
    inputs = inputs_of(model="llama3_405b", world_size=512)
    settings = with_layout(inputs.settings, LayoutChoice(tp=8, pp=16, vp=4, cp=2, ep=1, mbs=1))
    model = settings.values["model"] or {}
    assert model["account_for_embedding_in_pipeline_split"] is True
    assert list(faults(build_run(settings), 512, 8)) == []
    back = (
        with_layout(settings, LayoutChoice(tp=8, pp=7, vp=1, cp=1, ep=1, mbs=1)).values["model"]
        or {}
    )
    assert "account_for_embedding_in_pipeline_split" not in back


@pytest.mark.parametrize(
    ("chunks", "layout"),
    [
        (4, "Et*16|(t*16|)*2t*13mL"),
        (8, "Et*8|(t*8|)*6t*5mL"),
        (16, "Et*4|(t*4|)*14tmL"),
        (32, "Et|(t*2|)*30mL"),
        (12, None),
    ],
)
def test_61_layers_are_laid_out_as_in_the_recipes_for_them(chunks: int, layout: str | None) -> None:
    assert uneven_layout(61, chunks, 1) == layout


def test_an_odd_model_is_divided_with_a_layout_of_its_own() -> None:
    inputs = inputs_of(model="deepseek_v3", world_size=256)
    choice = LayoutChoice(tp=1, pp=4, vp=4, cp=1, ep=64, mbs=1)
    settings = with_layout(inputs.settings, choice)
    model = settings.values["model"] or {}
    assert model["pipeline_model_parallel_layout"] == "Et*4|(t*4|)*14tmL"
    assert list(faults(build_run(settings), 256, 8)) == []
    assert layout_in(build_run(settings)) == choice
    other = LayoutChoice(tp=1, pp=1, vp=1, cp=1, ep=64, mbs=1)
    assert "pipeline_model_parallel_layout" not in (
        with_layout(settings, other).values["model"] or {}
    )


def test_stages_of_a_hybrid_divide_its_layers_alone() -> None:
    inputs = inputs_of(model="nemotronh_47b", world_size=64)
    run = build_run(inputs.settings)
    sizes = sizes_of(run.model, run.train)
    found = list(candidates(sizes, 64, 8, layout_in(run), ("pp", "vp")))
    # 100 with embedding and loss: 5 and 10 chunks would divide them.
    assert sizes.layers == 98
    assert {one.pp * one.vp for one in found} == {1, 2, 14}
    for choice in found:
        model = with_layout(inputs.settings, choice).values["model"] or {}
        assert not model.get("account_for_embedding_in_pipeline_split")


def test_what_was_chosen_is_not_called_assumed() -> None:
    chosen = planned(inputs_of())
    assert not any(note.startswith("train.micro_batch_size=") for note in chosen.notes)
    assert any(note.startswith("mixed_precision=bf16_mixed is assumed") for note in chosen.notes)
    swept = planned(inputs_of("tp=8", "pp=4"), dimensions=("vp",))
    assert any(note.startswith("train.micro_batch_size=1 is assumed") for note in swept.notes)


def test_a_sweep_says_what_became_of_every_layout() -> None:
    inputs = inputs_of("tp=4", "cp=2")
    ranking = sweep(inputs.settings, cluster_of("h100", 64), ("pp", "vp", "recompute"), ranked=3)
    tried, rest, fitting, slower = map(int, re.findall(r"\d+", sweep_header(ranking)))
    assert (tried, fitting, slower) == (ranking.tried, len(ranking.fitting), ranking.slower)
    assert rest == tried - fitting - slower > 0


def test_only_what_is_swept_varies() -> None:
    ranking = swept("pp", "vp", overrides=("tp=4", "cp=2"))
    assert ranking.fitting
    assert {(r.layout.tp, r.layout.cp, r.layout.mbs) for r in ranking.fitting} == {(4, 2, 1)}
    assert len({r.layout.pp for r in ranking.fitting}) > 1


def test_the_fastest_that_fits_comes_first() -> None:
    ranking = swept("tp", "pp", "vp", "cp")
    # Equal ones, to a tenth of a token, are shown simplest first.
    rates = [round(r.summary.tokens_per_s_per_gpu, 1) for r in ranking.fitting]
    assert rates == sorted(rates, reverse=True) and len(rates) > 5
    assert all(r.memory.needed <= r.memory.usable for r in ranking.fitting)
    assert 0 < len(ranking.fitting) < ranking.tried


def test_a_ranked_figure_is_that_of_the_plan_for_this_layout() -> None:
    ranking = swept("tp", "pp", "vp", "cp")
    for ranked in ranking.fitting[::20]:
        layout = ranked.layout
        given = (f"tp={layout.tp}", f"pp={layout.pp}", f"vp={layout.vp}", f"cp={layout.cp}")
        plan = planned(inputs_of(*given))
        assert plan.layout == layout
        assert plan.estimates[0].step_s == pytest.approx(ranked.summary.step_s, rel=1e-6)
        assert plan.memory is not None
        assert plan.memory.needed == pytest.approx(ranked.memory.needed)


def test_without_a_layout_the_fastest_is_planned_and_the_plan_says_so() -> None:
    plan = planned(inputs_of("mbs=2"))
    assert plan.layout.mbs == 2
    assert plan.chosen_because is not None and plan.ranking is not None
    assert plan.layout == plan.ranking.best.layout
    given = planned(inputs_of("tp=8", "pp=4", "vp=5"))
    assert given.chosen_because is None and given.layout == LayoutChoice(
        tp=8, pp=4, vp=5, cp=1, ep=1, mbs=1
    )


def test_more_memory_lets_more_fit() -> None:
    on_h100, on_h200 = (swept("tp", "pp", "vp", "cp", gpu=gpu) for gpu in ("h100", "h200"))
    assert {r.layout for r in on_h100.fitting} < {r.layout for r in on_h200.fitting}
    assert on_h200.best.summary.tokens_per_s_per_gpu >= on_h100.best.summary.tokens_per_s_per_gpu


def test_where_nothing_fits_the_closest_is_shown() -> None:
    with pytest.raises(InputError, match=r"none of \d+ layouts fits; the closest, .* GB more than"):
        planned(inputs_of(model="llama3_405b", world_size=16))


def test_where_a_layout_does_not_fit_one_that_does_is_shown() -> None:
    with pytest.raises(InputError, match=r"GB more than .*; tp=\d+ pp=\d+ .* fits") as caught:
        planned(inputs_of("tp=1"))
    shown = str(caught.value).partition("; ")[2]
    overrides = [word for word in shown.split() if "=" in word]
    assert planned(inputs_of(*overrides)).memory is not None


def test_a_given_layout_that_can_run_is_planned_and_the_sweep_is_shown() -> None:
    plan = planned(inputs_of("tp=8", "pp=4", "vp=5"), dimensions=("pp", "vp"))
    assert plan.layout == LayoutChoice(tp=8, pp=4, vp=5, cp=1, ep=1, mbs=1)
    assert plan.ranking is not None and plan.ranking.best.layout != plan.layout
    assert any("fastest of the sweep" in note for note in plan.notes)


def test_nodes_smaller_than_the_reference_bound_tensor_parallelism() -> None:
    inputs = read_inputs(("tp=8",), model="llama3_8b", world_size=16, nodes=4, domain=8)
    assert inputs.gpus_per_node == 4
    assert (nvlink_domain(8, 4), nvlink_domain(72, 4), nvlink_domain(8, None)) == (4, 72, 8)
    with pytest.raises(InputError, match="beyond the NVLink domain of 4 GPUs"):
        planned(inputs)


@pytest.mark.parametrize("text", ["tp,pq", "", "tp,,pp", "dp"])
def test_unknown_dimensions_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="unknown dimension"):
        parse_swept(text)


def test_dimensions_are_read_once_and_vpp_is_vp() -> None:
    assert parse_swept("TP, vpp,tp") == ("tp", "vp")
