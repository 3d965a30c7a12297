"""The documents that `overlapkit plan --json` prints match their schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlapkit.plan.figure import given
from overlapkit.plan.layout_document import LISTED
from overlapkit.plan.plan import CHOSEN_FROM
from overlapkit.plan.work_document import derivation_document
from support.documents import check_document

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tests/data/bridge_configs"
ON_64 = ("--gpu", "h100", "--world-size", "64")
NAMED = ("--model", "llama3_70b", *ON_64, "tp=4", "pp=4", "vp=5", "cp=2")
RUNS = {
    "a named model": NAMED,
    "with its arithmetic": (*NAMED, "--show-work"),
    "a sweep": (*NAMED, "--sweep", "pp,vp"),
    "a chosen layout": ("--model", "llama3_8b", "--gpu", "h100", "--world-size", "8"),
    "no overlap at all": ("--model", "llama3_8b", "--gpu", "h200", "--world-size", "2", "tp=2"),
    "adapters": (str(CONFIGS / "llama3_8b_peft_config.yaml"), "--gpu", "h100", "--world-size", "8"),
    "a hybrid": (str(CONFIGS / "nemotronh_8b_pretrain_config.yaml"), *ON_64),
    "experts": (str(ROOT / "examples/qwen3_30b_a3b_64xb200.yaml"), *ON_64),
    "changes": (str(ROOT / "examples/pitfalls_16xh100.yaml"), *ON_64, "--show-work"),
    "a launch script": (
        "--from-megatron-lm",
        str(ROOT / "tests/data/megatron_lm/llama3_8b_fsdp.sh"),
        *ON_64,
    ),
}


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_a_document_matches_its_schema(
    plan: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    done = plan(*arguments, "--json")
    assert done.status == 0, done.err
    check_document(done.document)


def test_a_sweep_lists_the_fastest(plan: Callable[..., Any]) -> None:
    run = (*ON_64, "--model", "llama3_70b", "--json")
    for arguments, listed in (((), CHOSEN_FROM), (("--sweep", "tp,pp,vp,cp"), LISTED)):
        found = plan(*run, *arguments).document["sweep"]
        assert len(found["layouts"]) == listed <= found["fit"] < found["tried"]
        assert found["fit"] + found["slower"] <= found["tried"]
        rates = [layout["tokens_per_s_per_gpu"] for layout in found["layouts"]]
        assert rates == sorted(rates, reverse=True)


def test_the_microbatches_of_each_pipeline_are_told(plan: Callable[..., Any]) -> None:
    layout = plan(*NAMED, "gbs=96", "--json").document["layout"]
    assert layout["microbatches"] == 96 // layout["dp"] == 48
    assert layout["bubble_share"] == pytest.approx(3 / (5 * 48))
    head, _, rest = plan(*NAMED, "gbs=96").out.partition("\n")
    assert head.endswith("DP 2, 48 microbatches, bf16")
    assert "(PP - 1) / (VPP x microbatches) = 3 / (5 x 48)" in rest
    flat = plan(*NAMED, "pp=1", "vp=null", "tp=8", "gbs=4", "--json").document["layout"]
    assert (flat["microbatches"], flat["bubble_share"]) == (1, None)


def test_a_derivation_names_every_input() -> None:
    time = (given("bytes", 6, "B", "a test") / given("rate", 2, "B/s", "a test")).called("time")
    document = derivation_document(time)
    assert document.name == "time"
    assert list(document.figures) == ["time", "bytes", "rate"]
    shown = document.figures["time"]
    assert (shown.value, shown.unit, shown.formula) == (3, "s", "bytes / rate")
    assert shown.inputs == ["bytes", "rate"]
    assert document.figures["rate"].source == "a test"


def test_an_estimate_says_what_its_class_measured(plan: Callable[..., Any]) -> None:
    found = plan(*NAMED, "--json").document["estimate"]
    of = found["range"]
    assert of["compared"] == "h100 bf16 dense" and of["own_class"] and of["layouts"] > 5
    least, most = of["least_tokens_per_s_per_gpu"], of["most_tokens_per_s_per_gpu"]
    assert least < found["tokens_per_s_per_gpu"]["with"] < most
    assert f"Expect {least:,} to {most:,} tokens/s/GPU" in plan(*NAMED).out


def test_what_was_never_compared_is_said(plan: Callable[..., Any]) -> None:
    long = ("--model", "llama3_8b", "--gpu", "a100", "--world-size", "8", "model.seq_length=32768")
    assert plan(*long, "tp=8", "--json").document["estimate"]["range"] is None
    assert "was ever compared with a measurement" in plan(*long, "tp=8").out


def test_a_sweep_says_what_it_cannot_tell_apart(plan: Callable[..., Any]) -> None:
    swept = (*NAMED, "--sweep", "pp,vp,tp")
    layouts = plan(*swept, "--json").document["sweep"]["layouts"]
    told = [layout["told_from_fastest"] for layout in layouts]
    assert told[0] is False and told == sorted(told)
    assert "count as equally fast: published pairs of layouts are" in plan(*swept).out
