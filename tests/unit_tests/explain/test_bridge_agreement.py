"""explain's effective knobs are those that Megatron-Bridge itself made effective."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from megatron.bridge.training.decisions import Outcome
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.overrides import parse_override
from overlapkit.config.run import read_settings
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.errors import InputError
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.hardware import find_gpu

DATA = Path(__file__).parents[2] / "data"
RECORDED = json.loads((DATA / "bridge_effective.json").read_text())
SHARED = json.loads((DATA / "bridge_configs" / "effective.json").read_text())

DELIBERATE = {
    "comm_overlap.tp_comm_bootstrap_backend=null": (
        "model.tp_comm_bootstrap_backend",
        "nccl",
        "an unset knob leaves the model's own value, nccl, alone",
    ),
}
"""Overrides of which we make something else on purpose: the knob, our value, and why."""

REFUSED_INPUT = {
    "comm_overlap.bucket_size=0": "a bucket of no parameters is refused as bad input",
}


@cache
def document(name: str) -> Document:
    return read_yaml(DATA / "bridge_configs" / f"{name}.yaml")


def report(name: str, case: dict) -> Report:
    software = AssumedSoftware(**{"te": "2.12.0", "torch": "any"} | case.get("software", {}))
    assumptions = Assumptions(*find_gpu("h100"), True, software, "as recorded", {}, "none")
    read = document(name)
    overrides = [parse_override(text, read.data) for text in case.get("overrides", ())]
    return explain(read_settings(read, overrides), case["world_size"], assumptions)


def told(case: dict) -> str:
    software = f" {case['software']}" if "software" in case else ""
    return f"{case['world_size']} {' '.join(case['overrides'])}{software}"


@pytest.mark.parametrize("name", RECORDED["configs"])
def test_recorded_knobs(name: str) -> None:
    compared = 0
    for case in RECORDED["configs"][name]:
        if "values" not in case or REFUSED_INPUT.keys() & set(case["overrides"]):
            continue
        effective = report(name, case).effective
        expected = dict(zip(RECORDED["knobs"], case["values"], strict=True))
        for override in DELIBERATE.keys() & set(case["overrides"]):
            knob, value, _ = DELIBERATE[override]
            expected[knob] = value
        found = {knob: effective[knob] for knob in expected if knob != "tp_comm_overlap_cfg"}
        found["tp_comm_overlap_cfg"] = bool(effective["model.tp_comm_overlap_cfg"])
        assert found == expected, told(case)
        compared += 1
    assert compared


@pytest.mark.parametrize("name", RECORDED["configs"])
def test_recorded_errors(name: str) -> None:
    for case in RECORDED["configs"][name]:
        # There Megatron-Bridge resets the switch that the request leans on; ours keeps it.
        kept = {
            "comm_overlap.delay_wgrad_compute=true",
            "model.overlap_moe_expert_parallel_comm=true",
        } <= set(case["overrides"])
        if "error" not in case or kept:
            continue
        try:
            outcomes = {decision.outcome for decision in report(name, case).findings}
        except InputError:
            continue
        assert Outcome.ERROR in outcomes, (told(case), case["error"])


@pytest.mark.parametrize("name", SHARED["cases"])
def test_shared_knobs(name: str) -> None:
    case = SHARED["cases"][name]
    config = name.partition("@")[0]
    effective = report(
        config, {**case, "software": {"te": "any" if case["te"] else None}}
    ).effective
    for section in ("model", "ddp", "optimizer"):
        for knob, value in case.get(section, {}).items():
            assert effective[f"{section}.{knob}"] == value, knob
    assert bool(effective["model.tp_comm_overlap_cfg"]) == case["tp_cfg"]


def test_the_record_is_large_enough_to_mean_something() -> None:
    cases = [case for cases in RECORDED["configs"].values() for case in cases]
    assert len(cases) > 400 and sum("error" in case for case in cases) > 50
    assert len({json.dumps(case.get("values")) for case in cases}) > 140


@pytest.mark.parametrize("override", REFUSED_INPUT)
def test_refused_input(override: str) -> None:
    with pytest.raises(InputError, match="bucket_size"):
        report(
            "llama3_8b_pretrain_config",
            {"world_size": 8, "overrides": ["comm_overlap.tp_comm_overlap=false", override]},
        )
