"""The page of `overlapkit explain --html`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.bridge.training.decisions import FINDINGS
from overlapkit.explain.page import BARS
from support.pages import Page

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
PITFALLS = str(EXAMPLES / "pitfalls_16xh100.yaml")


@pytest.fixture
def page(overlapkit, tmp_path: Path) -> Callable[..., Page]:
    """`page(*arguments)`: the page that explain writes."""

    def write(*arguments: str) -> Page:
        out = tmp_path / "page.html"
        result = overlapkit("explain", *arguments, "--html", str(out))
        assert result.status in (0, 1), result.err
        return Page(out)

    return write


def test_findings_come_first_with_reason_and_remedy(page, overlapkit) -> None:
    written = page(PITFALLS, "--world-size", "16")
    document = overlapkit("explain", PITFALLS, "--world-size", "16", "--json").document
    assert written.sections[0] == "Findings"
    findings = [d for d in document["decisions"] if d["outcome"] in FINDINGS]
    assert len(findings) > 2 and f"{len(findings)} findings" in written.text
    first = written.text.partition("Tensor parallel")[0]
    for finding in findings:
        assert finding["knob"] in first and finding["rule"] in first
        assert finding["remedy"][1:].rstrip(".") in first
    for knob in document["effective"]:
        assert knob in written.text


def test_every_dimension_and_the_environment_are_shown(page) -> None:
    written = page(PITFALLS, "--world-size", "16")
    expected = ["Tensor parallel", "Data parallel", "Pipeline parallel", "Mixed precision"]
    assert [s for s in written.sections if s in expected] == expected
    assert "CUDA_DEVICE_MAX_CONNECTIONS=1" in written.text
    assert "compared with the current environment" in written.text


def test_without_findings_the_verdict_says_so(page) -> None:
    written = page(str(EXAMPLES / "gpt_1b_8xh100.yaml"), "--world-size", "8")
    assert "Everything that was requested is in effect." in written.text
    assert "Findings" not in written.sections


def test_each_chunk_is_a_bar_of_its_buckets(page) -> None:
    written = page(PITFALLS, "--world-size", "16")
    pieces = [a for tag, a in written.tags if tag == "rect" and a["class"] == "own"]
    # 4 buckets in the first of 2 x 4 chunks; the last chunk has a second bucket.
    assert "Gradient buckets" in written.sections
    assert written.text.count("stage 0, chunk") == written.text.count("stage 1, chunk") == 4
    assert "4 buckets" in written.text and len(pieces) == 4 + 6 + 2


def test_expert_buckets_have_a_color_of_their_own(page) -> None:
    written = page(str(EXAMPLES / "qwen3_30b_a3b_64xb200.yaml"), "--world-size", "64")
    assert {a["class"] for tag, a in written.tags if tag == "rect"} >= {"own", "expert"}
    assert "expert parameters" in written.text


def test_many_chunks_are_cut_short(page) -> None:
    name = str(EXAMPLES / "llama3_70b_64xh100.yaml")
    written = page(name, "model.pipeline_model_parallel_size=4", "--world-size", "64")
    assert len([a for tag, a in written.tags if a.get("class") == "bar"]) == BARS
    assert f"{4 * 5 - BARS} more chunks are not shown" in written.text


def test_no_bars_where_the_buckets_are_not_known(page, config) -> None:
    text = "model: {tensor_model_parallel_size: 2}\nddp: {overlap_grad_reduce: true}\n"
    written = page(config(text), "--world-size", "8")
    assert "Gradient buckets" not in written.sections


def test_names_from_files_are_text(page, config) -> None:
    name = config(Path(PITFALLS).read_text(), "<b onclick=x>&amp;.yaml")
    written = page(name, "comm_overlap.tp_comm_bootstrap_backend=<i>mpi", "--world-size", "16")
    assert "<b onclick=x>&amp;.yaml" in written.text and "<i>mpi" in written.text


def test_a_launch_script_lists_what_was_assumed(page) -> None:
    script = ROOT / "tests/data/megatron_lm/mistakes.sh"
    written = page("--from-megatron-lm", str(script), "GPUS=8")
    assert "Megatron-LM's rules" in written.text


def test_the_answer_on_standard_output_stays(overlapkit, tmp_path: Path) -> None:
    for form in ([], ["--json"]):
        arguments = ["explain", PITFALLS, "--world-size", "16", *form]
        plain = overlapkit(*arguments)
        with_page = overlapkit(*arguments, "--html", str(tmp_path / "p.html"))
        assert (with_page.status, with_page.out) == (plain.status, plain.out)


def test_a_difference_shows_causes_and_the_findings_of_the_second(page, overlapkit) -> None:
    name = str(EXAMPLES / "gpt_1b_8xh100.yaml")
    changed = ["b:model.tensor_model_parallel_size=2", "b:comm_overlap.tp_comm_overlap=true"]
    written = page(name, *changed, "--world-size", "8")
    document = overlapkit("explain", name, *changed, "--world-size", "8", "--json").document
    assert "Because of model.tensor_model_parallel_size 1 -> 2" in written.sections
    assert f"Findings in {name}" in written.sections
    assert all(change["knob"] in written.text for change in document["changes"])
    same = page(name, name, "--world-size", "8")
    assert same.sections == [] and "No decision differs" in same.text


def test_an_input_is_not_overwritten(overlapkit, config) -> None:
    name = config(Path(PITFALLS).read_text())
    environment = config("A=1\n", "job.env")
    for target in (name, environment):
        before = Path(target).read_bytes()
        result = overlapkit(
            "explain", name, "--world-size", "16", "--env-file", environment, "--html", target
        )
        assert result.status == 2 and "is also an input" in result.err
        assert Path(target).read_bytes() == before
