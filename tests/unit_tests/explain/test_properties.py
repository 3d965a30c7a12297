"""Whatever the input, explain answers with a whole report or with one InputError."""

from __future__ import annotations

import json
import math
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml
from hypothesis import HealthCheck, assume, example, given
from hypothesis import strategies as st

from megatron.bridge.training.decisions import FINDINGS, RULES
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.overrides import parse_override
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.schema import known_keys, sections
from overlapkit.config.yaml_file import Document, YamlProblem, load_yaml, read_yaml
from overlapkit.errors import InputError
from overlapkit.explain.difference import find_difference, outcomes
from overlapkit.explain.difference_document import difference_document
from overlapkit.explain.document import ExplainDocument, explain_document
from overlapkit.explain.report import EFFECTIVE_KNOBS, Assumptions, explain
from overlapkit.hardware import find_gpu, gpus
from support.documents import check_document
from support.drawn_configurations import (
    configurations,
    odd,
    sizes,
)
from support.property_tests import examples

ROOT = Path(__file__).parents[3]
SLOW: dict[str, Any] = {"database": None, "suppress_health_check": [HealthCheck.too_slow]}

assumptions = st.builds(
    lambda gpu, te, torch, queues: Assumptions(
        *find_gpu(gpu), True, AssumedSoftware(te, torch), "drawn", queues, "drawn"
    ),
    st.sampled_from(sorted(gpus())),
    st.sampled_from(["any", None, "2.6", "2.12.0"]),
    st.sampled_from(["any", "2.5", "2.6.0"]),
    st.dictionaries(st.just("CUDA_DEVICE_MAX_CONNECTIONS"), st.text(max_size=5)),
)
world_sizes = st.sampled_from([1, 2, 8, 16, 64, 48, 10**9])
overrides = st.sampled_from(sorted(sections())).flatmap(
    lambda name: st.builds(
        lambda key, value: f"{name}.{key}={yaml.safe_dump(value, default_flow_style=True).strip()}",
        st.sampled_from(sorted(known_keys(name)) or ["nothing"]) | st.text(max_size=10),
        odd | sizes,
    )
)


def settings_of(data: dict[str, Any]) -> Settings:
    return read_settings(Document("drawn.yaml", data))


def check_report(report: ExplainDocument) -> None:
    document = msgspec.to_builtins(report)
    loaded = json.loads(msgspec.json.encode(report))
    assert loaded == document or any(map(math.isnan, floats(document)))
    check_document(loaded)
    assert list(document["effective"]) == list(EFFECTIVE_KNOBS)
    for decision in document["decisions"]:
        assert decision["reason"] and decision["rule"] in RULES
        file, line = decision["source"]["file"], decision["source"]["line"]
        assert re.search(r"rule\(", lines_of(file)[line - 1])
    findings = [d for d in document["decisions"] if d["outcome"] in FINDINGS]
    assert document["findings"] == len(findings)


@cache
def lines_of(file: str) -> list[str]:
    return (ROOT / file).read_text().splitlines()


def floats(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in floats(item)]
    return [value] if isinstance(value, float) else []


@examples(100, 3000, **SLOW)
@given(configurations, assumptions, world_sizes)
def test_any_configuration(data: dict[str, Any], assumed: Assumptions, size: int) -> None:
    try:
        report = explain(settings_of(data), size, assumed)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return
    check_report(explain_document(report))


@examples(40, 1000, **SLOW)
@given(configurations, st.lists(overrides, max_size=4), world_sizes)
def test_any_override(data: dict[str, Any], texts: list[str], size: int) -> None:
    assumed = Assumptions(*find_gpu("h100"), True, AssumedSoftware(), "any", {}, "none")
    try:
        parsed = [parse_override(text, data) for text in texts]
        report = explain(read_settings(Document("drawn.yaml", data), parsed), size, assumed)
    except InputError as error:
        assert "\n" not in str(error)
        return
    check_report(explain_document(report))


@examples(20, 300, **SLOW)
@given(configurations, configurations, world_sizes)
def test_any_difference(a: dict[str, Any], b: dict[str, Any], size: int) -> None:
    assumed = Assumptions(*find_gpu("h100"), True, AssumedSoftware(), "any", {}, "none")
    try:
        difference = find_difference([settings_of(a), settings_of(b)], [size, size], assumed)
    except InputError:
        return
    msgspec.json.encode(difference_document(difference))
    before, after = outcomes(difference.before), outcomes(difference.after)
    changed = {of for of in before | after if before.get(of) != after.get(of)}
    assert {change.of for change in difference.changes} == changed
    for change in difference.changes:
        assert set(change.causes) <= set(difference.keys)


@examples(15, 200, **SLOW)
@given(configurations, world_sizes)
def test_a_run_does_not_differ_from_itself(data: dict[str, Any], size: int) -> None:
    assumed = Assumptions(*find_gpu("h100"), True, AssumedSoftware(), "any", {}, "none")
    try:
        difference = find_difference([settings_of(data)] * 2, [size, size], assumed)
    except InputError:
        return
    assert difference.changes == [] and difference.keys == {}


@examples(50, 1000, **SLOW)
@given(st.binary(max_size=400))
@example(b"model: {}")
@example(b"model: \xff")
def test_any_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(content)
        try:
            read_settings(read_yaml(path))
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


yaml_text = st.lists(
    st.sampled_from(
        ["model", ":", " ", "\n", "  ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<", "!!int ",
         "!!python/object:os.system ", "null", "1", ".nan", '"', "'", "|", ">", "? ", "%YAML 9\n",
         "---\n", "...\n", "\t", "#", "2020-13-01", "0x", "1:2", "!!binary ", "!!set ", "!!omap ",
         "=", ",", "~", "\ufeff", "\x85", "\u2028", "é", "!!timestamp ", "!!bool ", "!!float "]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@examples(80, 2000, **SLOW)
@given(yaml_text)
def test_any_yaml(text: str) -> None:
    try:
        data, lines = load_yaml(text)
    except YamlProblem as problem:
        assert str(problem)
        return
    if isinstance(data, dict):
        assert all(isinstance(name, str) for keys in lines for name in keys)
        assert set(data) >= {keys[0] for keys in lines if len(keys) == 1} - {"<<"}


@examples(30, 750, **SLOW)
@given(configurations)
def test_reading_changes_nothing_of_what_was_read(data: dict[str, Any]) -> None:
    assume(not any(map(math.isnan, floats(data))))
    before = json.dumps(data)
    try:
        drawn = settings_of(data)
        assumed = Assumptions(*find_gpu("h100"), True, AssumedSoftware(), "any", {}, "none")
        first = explain_document(explain(drawn, 64, assumed))
        assert explain_document(explain(drawn, 64, assumed)) == first
    except InputError:
        pass
    assert json.dumps(data) == before
