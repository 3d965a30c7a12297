"""The documents that `overlapkit explain --json` prints match their schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.decisions import FINDINGS, RULES
from overlapkit.explain.report import DIMENSIONS, EFFECTIVE_KNOBS
from support.documents import check_document

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
DATA = ROOT / "tests" / "data"

RUN = """\
model: {tensor_model_parallel_size: 2, num_layers: 4, hidden_size: 64, num_attention_heads: 4,
        vocab_size: 512}
ddp: {use_distributed_optimizer: true, bucket_size: 5}
comm_overlap: {tp_comm_overlap: true, bucket_size: auto}
mixed_precision: bf16_mixed
"""


def check_decision(decision: dict[str, Any]) -> None:
    rule = RULES[decision["rule"]]
    assert decision["source"] == {"file": f"src/{rule.path}", "line": rule.line}
    line = (ROOT / decision["source"]["file"]).read_text().splitlines()[rule.line - 1]
    assert re.search(r"rule\(", line.strip()), line
    assert decision["dimension"] in DIMENSIONS


@pytest.fixture
def report(overlapkit, config) -> dict[str, Any]:
    environment = config("CUDA_DEVICE_MAX_CONNECTIONS=8\n", "cluster.env")
    result = overlapkit(
        "explain", config(RUN), "--world-size", "8", "--env-file", environment, "--json"
    )
    assert result.status == 1
    return result.document


def test_explain(report: dict[str, Any]) -> None:
    check_document(report)
    findings = [d for d in report["decisions"] if d["outcome"] in FINDINGS]
    assert report["findings"] == len(findings) > 2
    assert set(report["launch_env"]) == set(report["launch_env_reasons"])


def test_every_decision(report: dict[str, Any]) -> None:
    assert {d["dimension"] for d in report["decisions"]} >= {"TP", "DP", "PP", "EP", "launch"}
    for decision in report["decisions"]:
        check_decision(decision)


def test_every_effective_knob(report: dict[str, Any]) -> None:
    section = PAGE.split("### Effective knobs", 1)[1].split("`model.tp_comm_overlap_cfg` is", 1)[0]
    assert re.findall(r"`([\w.]+)`", section)[1:] == list(report["effective"])
    assert list(report["effective"]) == list(EFFECTIVE_KNOBS)


def test_every_dimension_is_documented() -> None:
    decision = PAGE.split("### Decision", 1)[1].split("\n## ", 1)[0]
    assert all(f"`{word}`" in decision for word in DIMENSIONS)


@pytest.mark.parametrize(
    "path",
    [*sorted(ROOT.glob("examples/*.yaml")), *sorted((DATA / "bridge_configs").glob("*.yaml"))],
    ids=lambda path: path.stem,
)
def test_a_configuration(path: Path, overlapkit) -> None:
    result = overlapkit("explain", str(path), "--world-size", "2048", "--json")
    assert result.status in (0, 1), result.err
    check_document(result.document)


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((DATA / "megatron_lm").glob("*.sh")) if p.stem != "two_launches"],
    ids=lambda path: path.stem,
)
def test_a_launch_script(path: Path, overlapkit) -> None:
    result = overlapkit("explain", "--from-megatron-lm", str(path), "GPUS=8", "--json")
    assert result.status in (0, 1), result.err
    check_document(result.document)


def test_a_difference(overlapkit, config) -> None:
    other = RUN.replace("model: {", "model: {sequence_parallel: true, ").replace("auto", "1000")
    other = other.replace("mixed_precision: bf16_mixed\n", "")
    names = config(RUN, "a.yaml"), config(other, "b.yaml")
    result = overlapkit("explain", *names, "--world-size", "8", "--world-size", "2", "--json")
    document = result.document
    check_document(document)
    for side in ("before", "after"):
        assert document[side]["findings"] == len(document[side]["decisions"])
        for decision in document[side]["decisions"]:
            check_decision(decision)
    for change in document["changes"]:
        assert (change["rule"] is not None) == (change["kind"] == "finding")
    assert {change["kind"] for change in document["changes"]} >= {"knob", "finding", "buckets"}
