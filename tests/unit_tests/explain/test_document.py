"""docs/json.md names exactly the keys, types and values that `--json` produces."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from megatron.bridge.training.decisions import RULES, Outcome
from overlapkit.explain.report import DIMENSIONS, EFFECTIVE_KNOBS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")

RUN = """\
model: {tensor_model_parallel_size: 2, num_layers: 4, hidden_size: 64, num_attention_heads: 4,
        vocab_size: 512}
ddp: {use_distributed_optimizer: true, bucket_size: 5}
comm_overlap: {tp_comm_overlap: true, bucket_size: auto}
mixed_precision: bf16_mixed
"""


def documented(heading: str) -> dict[str, str]:
    """Key to type in the table below a heading."""
    section = PAGE.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE))


def is_of(value: object, told: str) -> bool:
    kinds = {"string": str, "integer": int, "object": dict, "any": object, "null": type(None)}
    for kind in told.split(" or "):
        kind = kind.split()[0].strip()
        kind = {"list": "list", "[side](#side)": "object"}.get(kind, kind)
        if kind == "list" and isinstance(value, list):
            return True
        if (
            kind in kinds
            and isinstance(value, kinds[kind])
            and not (kind == "integer" and isinstance(value, bool))
        ):
            return True
    return False


def check(item: dict, heading: str) -> None:
    table = documented(heading)
    assert table, heading
    assert list(item) == list(table)
    for key, told in table.items():
        assert is_of(item[key], told), (key, told, item[key])


def check_decision(decision: dict) -> None:
    check(decision, "Decision")
    rule = RULES[decision["rule"]]
    assert decision["source"] == {"file": f"src/{rule.path}", "line": rule.line}
    line = (ROOT / decision["source"]["file"]).read_text().splitlines()[rule.line - 1]
    assert re.search(r"rule\(", line.strip()), line
    assert decision["dimension"] in DIMENSIONS
    assert decision["outcome"] in {outcome.value for outcome in Outcome}


@pytest.fixture
def report(overlapkit, config) -> dict:
    environment = config("CUDA_DEVICE_MAX_CONNECTIONS=8\n", "cluster.env")
    result = overlapkit(
        "explain", config(RUN), "--world-size", "8", "--env-file", environment, "--json"
    )
    assert result.status == 1
    return json.loads(result.out)


def test_explain(report: dict) -> None:
    check(report, "`overlapkit/explain/v1`")
    assert report["schema"] == "overlapkit/explain/v1"
    assert list(report["gpu"]) == ["name", "assumed"]
    findings = [d for d in report["decisions"] if d["outcome"] in ("refused", "error")]
    assert report["findings"] == len(findings) > 2
    assert set(report["launch_env"]) == set(report["launch_env_reasons"])
    assert all(isinstance(value, str) for value in report["launch_env"].values())


def test_every_decision(report: dict) -> None:
    assert {d["dimension"] for d in report["decisions"]} >= {"TP", "DP", "PP", "EP", "launch"}
    for decision in report["decisions"]:
        check_decision(decision)


def test_every_effective_knob(report: dict) -> None:
    section = PAGE.split("### `effective`", 1)[1].split("`model.tp_comm_overlap_cfg` is", 1)[0]
    assert re.findall(r"`([\w.]+)`", section) == list(report["effective"]) == list(EFFECTIVE_KNOBS)


def test_the_words_of_outcome_kind_and_dimension_are_documented() -> None:
    decision = PAGE.split("### Decision", 1)[1].split("\n## ", 1)[0]
    for word in (*(outcome.value for outcome in Outcome), *DIMENSIONS):
        assert f"`{word}`" in decision


def test_a_difference(overlapkit, config) -> None:
    other = RUN.replace("model: {", "model: {sequence_parallel: true, ").replace("auto", "1000")
    other = other.replace("mixed_precision: bf16_mixed\n", "")
    names = config(RUN, "a.yaml"), config(other, "b.yaml")
    result = overlapkit("explain", *names, "--world-size", "8", "--world-size", "2", "--json")
    document = json.loads(result.out)
    check(document, "`overlapkit/explain-difference/v1`")
    for side in ("before", "after"):
        check(document[side], "Side")
        for decision in document[side]["decisions"]:
            check_decision(decision)
    kinds = set()
    for change in document["changes"]:
        check(change, "Change")
        assert (change["rule"] is not None) == (change["kind"] == "finding")
        kinds.add(change["kind"])
        for cause in change["causes"]:
            check(cause, "Cause")
    assert kinds >= {"knob", "finding", "buckets"}
    told = PAGE.split("### Change", 1)[1]
    for kind in ("knob", "env", "finding", "buckets"):
        assert f"`{kind}`" in told
