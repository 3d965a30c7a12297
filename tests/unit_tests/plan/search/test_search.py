"""The search for a layout: bounds that prune without losing the fastest, and one estimate."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from overlapkit.config.run import build_run
from overlapkit.plan.cluster import cluster_of
from overlapkit.plan.inputs import Inputs, read_inputs
from overlapkit.plan.plan import make_plan
from overlapkit.plan.search.bounds import Bounds
from overlapkit.plan.search.candidates import (
    LayoutChoice,
    candidates,
    layout_in,
    sizes_of,
    with_layout,
)
from overlapkit.plan.search.measures import allows, saving_settings, saving_tiers
from overlapkit.plan.search.ranking import Ranking
from overlapkit.plan.search.sweep import sweep
from overlapkit.plan.search.trials import Trials

Command = Callable[..., Any]
MIXTURE = {
    "num_layers": 12,
    "hidden_size": 2048,
    "ffn_hidden_size": 6144,
    "moe_ffn_hidden_size": 768,
    "num_attention_heads": 16,
    "num_query_groups": 4,
    "num_moe_experts": 32,
    "moe_router_topk": 4,
    "moe_grouped_gemm": True,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
    "share_embeddings_and_output_weights": False,
    "vocab_size": 65536,
    "seq_length": 4096,
}
DENSE = {
    "num_layers": 32,
    "hidden_size": 4096,
    "ffn_hidden_size": 14336,
    "num_attention_heads": 32,
    "num_query_groups": 8,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
    "share_embeddings_and_output_weights": False,
    "vocab_size": 128256,
    "seq_length": 16384,
}
CASES = [
    pytest.param(MIXTURE, "h100", 16, ("tp", "pp", "vp", "ep", "mbs", "recompute"), id="mixture"),
    pytest.param(MIXTURE, "b200", 16, ("pp", "vp", "cp", "ep", "cp_comm"), id="mixture-b200"),
    pytest.param(DENSE, "h100", 16, ("tp", "pp", "vp", "cp", "recompute", "cp_comm"), id="dense"),
    pytest.param(DENSE, "a100", 16, ("tp", "pp", "mbs", "recompute"), id="dense-a100"),
]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(model: dict[str, Any], **sections: Any) -> str:
        file = tmp_path / "run.yaml"
        batch = {"train": {"global_batch_size": 64}}
        file.write_text(yaml.safe_dump({"model": model, "ddp": {}, **batch, **sections}))
        return str(file)

    return write


def read(file: str, world_size: int, *overrides: str) -> Inputs:
    return read_inputs((file, *overrides), world_size=world_size)


def named(ranking: Ranking, most: int) -> list[tuple[LayoutChoice, float]]:
    return [
        (one.layout, round(one.summary.tokens_per_s_per_gpu, 1)) for one in ranking.fitting[:most]
    ]


@pytest.mark.parametrize(("model", "gpu", "world_size", "swept"), CASES)
def test_the_pruned_search_finds_what_the_full_enumeration_finds(
    written: Callable[..., str],
    model: dict[str, Any],
    gpu: str,
    world_size: int,
    swept: tuple[str, ...],
) -> None:
    settings = read(written(model), world_size).settings
    cluster = cluster_of(gpu, world_size)
    pruned = sweep(settings, cluster, swept, ranked=5)
    full = sweep(settings, cluster, swept, ranked=None)
    assert named(pruned, 5) == named(full, 5) and len(pruned.fastest) == 5
    assert full.slower == 0 and pruned.slower > 0 and pruned.tried == full.tried
    bounds = Bounds(settings, cluster, [one.layout for one in full.fitting])
    for one in full.fitting:
        assert bounds.most(one.layout) >= one.summary.tokens_per_s_per_gpu


@pytest.mark.parametrize(("model", "gpu", "world_size", "swept"), CASES)
def test_bounds_that_are_found_late_have_the_order_of_those_that_are_found_at_once(
    written: Callable[..., str],
    model: dict[str, Any],
    gpu: str,
    world_size: int,
    swept: tuple[str, ...],
) -> None:
    settings, cluster = read(written(model), world_size).settings, cluster_of(gpu, world_size)
    run = build_run(settings)
    fixed = layout_in(run)
    sizes = sizes_of(run.model, run.train)
    layouts = list(candidates(sizes, world_size, 8, fixed, swept))
    bounds = Bounds(settings, cluster, layouts)
    found = list(bounds.fastest_first())
    order = list(dict.fromkeys(each.recompute for each in layouts))
    at_once = [(bounds.most(each), each) for each in layouts]
    assert found == sorted(at_once, key=lambda x: (-x[0], order.index(x[1].recompute), x[1]))


@pytest.mark.parametrize("gpu", ["h100", "b200"])
def test_a_mixtures_layout_in_a_sweep_has_the_estimate_of_its_plan(
    written: Callable[..., str], gpu: str
) -> None:
    file, cluster = written(MIXTURE), cluster_of(gpu, 32)
    ranking = sweep(read(file, 32).settings, cluster, ("pp", "vp", "ep"), ranked=None)
    assert any(one.layout.ep * one.layout.tp > 8 for one in ranking.fitting)
    for one in ranking.fitting[::9]:
        x = one.layout
        layout = (f"tp={x.tp}", f"pp={x.pp}", f"vp={x.vp}", f"ep={x.ep}", f"mbs={x.mbs}")
        plan = make_plan(read(file, 32, *layout), cluster)
        assert plan.layout == x
        assert plan.estimates[0].step_s == pytest.approx(one.summary.step_s, rel=1e-6)


def document(plan: Command, *arguments: str) -> dict[str, Any]:
    done = plan(*arguments, "--json")
    assert done.status == 0, done.err
    result: dict[str, Any] = json.loads(done.out)
    return result


def test_a_configuration_without_a_layout_is_planned_like_a_model_without_one(
    plan: Command, written: Callable[..., str]
) -> None:
    bare = written(MIXTURE)
    shown = document(plan, bare, "--gpu", "h100", "--world-size", "16")
    assert shown["layout"]["chosen"] is not None and shown["sweep"]["tried"] > 100
    assert shown["settings"]["model.moe_token_dispatcher_type"] == "alltoall"
    # What is chosen can be set, and is then planned as it is.
    line = next(
        one
        for one in plan(bare, "--gpu", "h100", "--world-size", "16").out.splitlines()
        if one.startswith("Set ")
    )
    overrides = shlex.split(line.removeprefix("Set ").partition(" (to paste")[0])
    again = document(plan, bare, "--gpu", "h100", "--world-size", "16", *overrides)
    assert again["layout"] | {"chosen": None} == shown["layout"] | {"chosen": None}
    assert again["layout"]["chosen"] is None
    assert again["estimate"]["step_ms"] == shown["estimate"]["step_ms"]


def test_a_layout_in_the_configuration_stays(plan: Command, written: Callable[..., str]) -> None:
    file = written({**DENSE, "tensor_model_parallel_size": 8})
    shown = document(plan, file, "--gpu", "h100", "--world-size", "16")
    assert shown["layout"]["chosen"] is None and shown["layout"]["tp"] == 8
    assert not any("parallel_size" in key for key in shown["settings"])


def test_a_dispatcher_that_is_stated_stays(plan: Command, written: Callable[..., str]) -> None:
    file = written({**MIXTURE, "moe_token_dispatcher_type": "allgather"})
    shown = document(plan, file, "--gpu", "h100", "--world-size", "16", "ep=8")
    assert "model.moe_token_dispatcher_type" not in shown["settings"]
    given = document(plan, written(MIXTURE), "--gpu", "h100", "--world-size", "16", "ep=8")
    assert given["settings"]["model.moe_token_dispatcher_type"] == "alltoall"
    assert any("moe_token_dispatcher_type=alltoall is assumed" in each for each in given["notes"])


def test_where_memory_is_short_something_is_recomputed(
    plan: Command, written: Callable[..., str]
) -> None:
    long = {**DENSE, "seq_length": 131072}
    run = (written(long), "--gpu", "h100", "--world-size", "8", "tp=8", "gbs=8")
    assert plan(*run).status == 2
    shown = document(plan, *run, "--sweep", "recompute")
    assert shown["layout"]["recompute"] == "mlp"
    assert shown["settings"]["model.recompute_granularity"] == "selective"
    assert shown["settings"]["model.recompute_modules"] == ["mlp"]
    assert shown["memory_gb"]["needed"] <= shown["memory_gb"]["usable"]


def test_what_a_configuration_recomputes_is_not_changed(
    plan: Command, written: Callable[..., str]
) -> None:
    file = written({**DENSE, "recompute_granularity": "selective", "recompute_modules": ["mlp"]})
    shown = document(plan, file, "--gpu", "h200", "--world-size", "16")
    assert shown["layout"]["recompute"] == "mlp"
    assert {each["recompute"] for each in shown["sweep"]["layouts"]} == {"mlp"}


@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_where_nothing_fits_the_closest_of_all_is_named(
    written: Callable[..., str], model: dict[str, Any]
) -> None:
    wide = {**model, "hidden_size": 4 * model["hidden_size"], "num_layers": 96}
    settings, cluster = read(written(wide), 8).settings, cluster_of("h100", 8)
    swept = ("tp", "pp", "vp", "cp", "ep", "mbs", "recompute")
    ranking = sweep(settings, cluster, swept, ranked=5)
    assert not ranking.fitting and ranking.least_over is not None
    layout, need = ranking.least_over
    run = build_run(settings)
    layouts = list(candidates(sizes_of(run.model, run.train), 8, 8, layout_in(run), swept))
    bounds = Bounds(settings, cluster, layouts)
    found = [bounds.costs(one) for one in layouts[:: max(len(layouts) // 40, 1)]]
    assert need.needed <= min(one.memory().needed for one in found if not isinstance(one, str))
    assert layout.mbs == 1


def chosen(plan: Command, file: str, world_size: int, gpu: str, *more: str) -> dict[str, Any]:
    return document(plan, file, "--gpu", gpu, "--world-size", str(world_size), *more)


ON_THE_HOST = {
    "optimizer.optimizer_cpu_offload": True,
    "optimizer.optimizer_offload_fraction": 1.0,
    "optimizer.overlap_cpu_optimizer_d2h_h2d": True,
    "optimizer.use_precision_aware_optimizer": True,
}
SHARDED = {"use_distributed_optimizer": True}


def test_where_nothing_fits_the_optimizer_goes_to_the_host(
    plan: Command, written: Callable[..., str]
) -> None:
    short = DENSE | {"seq_length": 8192}
    file = written(short, ddp=SHARDED)
    found = chosen(plan, file, 1, "h100")
    assert found["layout"]["saving"] == ["optimizer on the host"]
    assert found["settings"].items() >= ON_THE_HOST.items()
    assert "none fits without optimizer on the host" in found["layout"]["chosen"]
    # Nothing like it was ever compared with a measurement.
    assert found["estimate"]["range"] is None
    again = chosen(plan, file, 1, "h100", *(f"{k}={v}".lower() for k, v in ON_THE_HOST.items()))
    assert again["estimate"]["step_ms"] == found["estimate"]["step_ms"]
    # On more GPUs it fits as it is.
    assert chosen(plan, file, 8, "h100")["layout"]["saving"] == []


def test_what_is_stated_is_not_changed_to_save_memory(
    plan: Command, written: Callable[..., str]
) -> None:
    short = DENSE | {"seq_length": 8192}
    file = written(short, ddp=SHARDED, optimizer={"optimizer_cpu_offload": False})
    done = plan(file, "--gpu", "h100", "--world-size", "1")
    assert done.status == 2 and "fits; the closest" in done.err


def test_without_a_distributed_optimizer_nothing_is_turned_on(
    plan: Command, written: Callable[..., str]
) -> None:
    done = plan(written(DENSE), "--gpu", "h100", "--world-size", "1")
    assert done.status == 2 and "on the host" not in done.err


@pytest.mark.parametrize(
    ("names", "pp", "recompute", "possible"),
    [
        (("FSDP",), 1, "full", True),
        (("FSDP",), 2, "none", False),
        (("activations on the host",), 1, "none", True),
        (("activations on the host",), 2, "none", False),
        (("activations on the host",), 1, "mlp", False),
        (("optimizer on the host", "activations on the host"), 1, "full", False),
        (("optimizer on the host",), 4, "full", True),
        (("bf16_with_mxfp8_mixed",), 4, "full", True),
    ],
)
def test_what_megatron_core_refuses_is_not_tried(
    names: tuple[str, ...], pp: int, recompute: str, possible: bool
) -> None:
    assert allows(names, pp=pp, recompute=recompute) is possible


def test_a_smaller_precision_is_the_last_way(written: Callable[..., str]) -> None:
    run = build_run(read(written(DENSE, ddp=SHARDED), 1).settings)
    lower = "bf16_with_mxfp8_mixed"
    *others, last = saving_tiers(run, frozenset(), True, lower)
    assert all(lower in names for names in last)
    assert not any(lower in names for tier in others for names in tier)
    assert saving_tiers(run, frozenset(), True, None) == others
    # Without the host's data sheet only FSDP is left.
    assert saving_tiers(run, frozenset(), False, None) == [[("FSDP",)]]
    stated = frozenset({"ddp.data_parallel_sharding_strategy"})
    assert ("FSDP",) not in saving_tiers(run, stated, True, None)[0]
    assert saving_settings(("activations on the host", lower), 32) == {
        "model.cpu_offloading": True,
        "model.cpu_offloading_num_layers": 31,
        "mixed_precision": lower,
    }


@pytest.mark.parametrize("saving", [("FSDP",), ("activations on the host",)])
def test_every_way_of_saving_memory_is_estimated_within_its_bound(
    written: Callable[..., str], saving: tuple[str, ...]
) -> None:
    short = MIXTURE | {"num_layers": 4}
    settings = read(written(short, ddp=SHARDED), 4).settings
    cluster = cluster_of("h100", 4)
    run = build_run(settings)
    fixed = replace(layout_in(run), saving=saving)
    swept = ("tp", "pp", "ep", "recompute")
    layouts = list(candidates(sizes_of(run.model, run.train), 4, 8, fixed, swept))
    assert layouts and all(one.pp == 1 for one in layouts)
    bounds = Bounds(settings, cluster, layouts)
    for layout in layouts[::3]:
        plan = make_plan(_with(read(written(short, ddp=SHARDED), 4), layout), cluster)
        assert plan.estimates
        assert bounds.most(layout) >= plan.estimates[0].tokens_per_s_per_gpu
        plain = bounds.costs(replace(layout, saving=()))
        saved = bounds.costs(layout)
        assert not isinstance(plain, str) and not isinstance(saved, str)


SHORT_OF_MEMORY = DENSE | {"num_layers": 64, "hidden_size": 8192, "ffn_hidden_size": 28672}
OFFERS = [
    # Less is recomputed or exchanged with the optimizer on the host.
    pytest.param(SHORT_OF_MEMORY | {"seq_length": 8192}, "h100", 16, id="offered"),
    pytest.param(DENSE | {"seq_length": 8192}, "h100", 8, id="not-needed"),
    pytest.param(MIXTURE, "b200", 4, id="mixture"),
]


@pytest.mark.parametrize(("model", "gpu", "world_size"), OFFERS)
def test_what_is_offered_is_what_the_full_enumeration_finds(
    written: Callable[..., str], model: dict[str, Any], gpu: str, world_size: int
) -> None:
    settings = read(written(model, ddp=SHARDED), world_size).settings
    cluster, run = cluster_of(gpu, world_size), build_run(settings)
    swept = ("tp", "pp", "vp", "ep", "mbs", "recompute")
    found = sweep(settings, cluster, (*swept, "saving"), ranked=5, offering=True)
    plain = sweep(settings, cluster, swept, ranked=None)
    assert named(found, 5) == named(plain, 5)
    sizes, every = sizes_of(run.model, run.train), Trials(settings, cluster)
    for saving in [names for tier in saving_tiers(run, frozenset(), True, None) for names in tier]:
        fixed = replace(layout_in(run), saving=saving)
        layouts = list(candidates(sizes, world_size, 8, fixed, swept))
        bounds = Bounds(settings, cluster, layouts)
        for _, layout in bounds.fastest_first():
            every.try_one(layout, bounds)
    fastest = every.ranking(0, None).best
    best = plain.best.summary
    told = fastest.summary.tokens_per_s_per_gpu > best.tokens_per_s_per_gpu * best.apart
    assert (found.offered and found.offered.layout) == (fastest.layout if told else None)


def test_an_offer_is_a_note_whose_overrides_plan_it(
    plan: Command, written: Callable[..., str]
) -> None:
    model = SHORT_OF_MEMORY | {"seq_length": 8192}
    file = written(model, ddp=SHARDED)
    found = chosen(plan, file, 16, "h100")
    offered = found["sweep"]["offered"]
    assert found["layout"]["saving"] == [] and offered["saving"] == ["optimizer on the host"]
    assert offered["told_from_fastest"]
    note = next(each for each in found["notes"] if each.startswith("not needed, but faster"))
    overrides = shlex.split(note.partition(" -> try ")[2])
    again = chosen(plan, file, 16, "h100", *overrides)
    assert again["estimate"]["tokens_per_s_per_gpu"]["with"] == offered["tokens_per_s_per_gpu"]
    # A layout that is given is not compared with others.
    assert again["sweep"] is None and not any("not needed" in each for each in again["notes"])
    # Where what saves memory was stated, it is part of every layout.
    stated = written(model, ddp=SHARDED, optimizer={"optimizer_cpu_offload": False})
    assert chosen(plan, stated, 16, "h100")["sweep"]["offered"] is None


def test_a_chosen_layout_says_how_many_others_count_as_equally_fast(
    plan: Command, written: Callable[..., str]
) -> None:
    shown = document(plan, written(MIXTURE), "--gpu", "h100", "--world-size", "16")
    others = sum(not each["told_from_fastest"] for each in shown["sweep"]["layouts"]) - 1
    assert others > 0
    assert f"at least {others} others count as equally fast" in shown["layout"]["chosen"]


def _with(inputs: Inputs, layout: LayoutChoice) -> Inputs:
    """A run with a layout that was chosen for it."""
    return replace(inputs, settings=with_layout(inputs.settings, layout), layout_given=True)
