"""Which performance recipe a published row was measured with (benchmarks/published_recipes.py)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from overlapkit.hardware import gpus
from overlapkit.plan.inputs import PRECISIONS
from overlapkit.plan.workload.recompute import SELECTIVE

BENCHMARKS = Path(__file__).resolve().parents[4] / "benchmarks"
RELEASES = ["25.11", "26.02", "26.02.01", "26.04", "26.04.01", "26.06", "26.06.01", "26.08"]
MXFP8 = "bf16_with_mxfp8_mixed"


@pytest.fixture(scope="module")
def rows() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("published_rows")


@pytest.fixture(scope="module")
def module(rows: Any) -> Any:
    return importlib.import_module("published_recipes")


@pytest.fixture(scope="module")
def recipes(module: Any) -> Any:
    return module.recipes().recipes


def published(rows: Any, **changes: Any) -> Any:
    row = {
        "model": "Qwen3_30B_a3B",
        "system": "DGX-B200",
        "precision": "MXFP8",
        "gpus": 8,
        "gbs": 512,
        "mbs": 4,
        "seq": 4096,
        "ep": 8,
        "tokens_per_sec_per_gpu": 1.0,
        "release": "26.04 NeMo Container",
        "set": "bridge-moe",
    }
    return msgspec.convert(row | changes, rows.Published)


def test_a_release_is_the_first_that_differs(rows: Any, module: Any) -> None:
    recipe = module.Recipe(model="qwen3", since="26.02", until="26.06")
    fits = [
        release
        for release in RELEASES
        if recipe.fits(published(rows, release=release), "b200", MXFP8)
    ]
    assert fits == ["26.02", "26.02.01", "26.04", "26.04.01"]


@pytest.mark.parametrize(
    ("conditions", "row", "other"),
    [
        ({"vp": 4}, {"pp": 8, "vp": 4}, {"pp": 8, "vp": 3}),
        ({"vp": 1}, {"pp": 8, "vp": None}, {"pp": 8, "vp": 2}),
        ({"vp": 1}, {"pp": 8, "vp": 1}, {"pp": 8, "vp": 2}),
        ({"pp": 8}, {"pp": 8}, {"pp": 16}),
        ({"fsdp": True}, {"fsdp": 64}, {"fsdp": 0}),
        ({"fsdp": False}, {"fsdp": None}, {"fsdp": 1}),
        ({"gbs": 512}, {}, {"gbs": 1024}),
        ({"mbs": 4}, {}, {"mbs": 1}),
        ({"ep": 8}, {}, {"ep": 64}),
        ({"until": "26.06"}, {"release": ""}, {"release": "26.06"}),
        ({"since": "26.06"}, {"release": "26.06.01"}, {"release": ""}),
    ],
)
def test_what_a_recipe_is_for(
    rows: Any, module: Any, conditions: dict[str, Any], row: dict[str, Any], other: dict[str, Any]
) -> None:
    recipe = module.Recipe(model="qwen3_30b", **conditions)
    assert recipe.fits(published(rows, **row), "b200", MXFP8)
    assert not recipe.fits(published(rows, **other), "b200", MXFP8)


def test_recipes_are_those_of_bridge(rows: Any, module: Any) -> None:
    assert module.recipe_for(published(rows), "b200", MXFP8).source
    assert not module.recipe_for(published(rows, set="dgxc"), "b200", MXFP8).source


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({}, {"cuda_graph_impl": "transformer_engine", "moe_token_dispatcher_type": "flex"}),
        ({"mbs": 1, "release": "26.02"}, {"moe_token_dispatcher_type": "alltoall"}),
        (
            {"release": "26.06.01"},
            {"cuda_graph_scope": ["full_iteration"], "overlap_moe_expert_parallel_comm": True},
        ),
        (
            {"release": "26.08"},
            {"cuda_graph_impl": "transformer_engine", "overlap_moe_expert_parallel_comm": True},
        ),
    ],
)
def test_a_layout_has_the_recipe_of_its_release(
    rows: Any, module: Any, change: dict[str, Any], settings: dict[str, Any]
) -> None:
    recipe = module.recipe_for(published(rows, **change), "b200", MXFP8)
    chosen = recipe.settings() | recipe.overlap(1)
    assert chosen.items() >= settings.items()


def test_overlap_is_on_where_a_recipe_does_not_turn_it_off(module: Any) -> None:
    on = module.Recipe(model="").overlap(2)
    assert on == {"tp_comm_overlap": True, "overlap_moe_expert_parallel_comm": False}
    assert not module.Recipe(model="").overlap(1)["tp_comm_overlap"]
    off = module.Recipe(model="", tp_overlap=False, grad_overlap=False).overlap(2)
    assert not off["tp_comm_overlap"]
    assert off["overlap_grad_reduce"] is False


def test_activations_are_offloaded_where_a_recipe_does(rows: Any) -> None:
    change = {"model": "LLAMA3_70B", "system": "DGX-GB200", "precision": "FP8", "gpus": 64}
    change |= {"gbs": 256, "mbs": 2, "seq": 8192, "ep": 1, "fsdp": 64, "set": ""}
    row = rows.read_row(published(rows, **change))
    assert row.work.offload.layers == 40
    assert not rows.read_row(published(rows, **change, release="25.11")).work.offload.layers


def test_a_recipe_keeps_its_layers_in_bf16(rows: Any) -> None:
    change = {"model": "Nemotron_3_Super", "system": "DGX-GB300", "precision": "NVFP4"}
    change |= {"gpus": 64, "mbs": 1, "seq": 8192, "ep": 64}
    before = rows.read_row(published(rows, **change, release="26.04"))
    after = rows.read_row(published(rows, **change, release="26.06"))
    # Predictions are in BF16 in both (keep_mtp_spec_in_bf16).
    assert bf16_layers(after) > bf16_layers(before)
    assert rows.estimated(after).step.value > rows.estimated(before).step.value


def bf16_layers(row: Any) -> int:
    return sum(layer.precision.name == "bf16" for layer in row.work.layers)


def test_the_gradients_of_h100_are_reduced_after_the_backward(rows: Any) -> None:
    change = {"model": "DeepSeekV3", "system": "DGX-H100", "precision": "BF16", "gpus": 1024}
    change |= {"gbs": 8192, "mbs": 1, "tp": 2, "pp": 8, "vp": 4, "ep": 64}
    row = rows.read_row(published(rows, **change))
    assert not row.overlap.dp_gradients
    assert not row.overlap.ep
    assert rows.read_row(published(rows, **change, release="25.11")).overlap.ep


def test_every_recipe_is_some_row_s(rows: Any, module: Any, recipes: Any) -> None:
    """No entry is hidden by one before it, and what it names exists."""
    precisions = set(PRECISIONS.values())
    for recipe in recipes:
        assert recipe.source
        assert set(recipe.gpus) <= set(gpus())
        assert set(recipe.precisions) <= precisions
        change = {
            name: value
            for name in ("mbs", "gbs", "pp", "vp", "ep", "fsdp")
            if (value := getattr(recipe, name)) is not None
        }
        found = [
            module.recipe_for(
                published(
                    rows, **{"mbs": 2, "ep": 2, **change}, model=recipe.model, release=release
                ),
                gpu,
                precision,
            )
            for release in [*RELEASES, "26.08.01"]
            for gpu in recipe.gpus or gpus()
            for precision in recipe.precisions or precisions
        ]
        assert recipe in found, recipe


def test_a_recipe_s_misspelt_key_is_an_error(module: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match="untill"):
        msgspec.convert({"model": "qwen3", "untill": "26.06"}, module.Recipe)


def test_every_setting_is_one_that_plan_takes(recipes: Any) -> None:
    modules = {"attn", "mlp", "mamba", "moe", "moe_router", "moe_preprocess"}
    for recipe in recipes:
        assert recipe.dispatcher in ("", "alltoall", "flex"), recipe
        assert recipe.graph == "full" or set(recipe.graph) <= modules, recipe
        assert set(recipe.recompute) <= set(SELECTIVE), recipe
        assert not (recipe.recompute and recipe.full_layers), recipe
