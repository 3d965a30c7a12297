"""Every remedy that is a change of settings, made to the configuration that needs it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from megatron.bridge.training.decisions import RULES, Decision, Outcome
from megatron.bridge.training.edits import ENV, REMOVED, Edit, in_words
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN
from support.rule_cases import ALL_CASES, BROKEN, NOTED
from support.rule_runs import EVERYTHING, decisions_of, findings

_SECTIONS = {"comm_overlap": "comm"}


def edited(case: dict[str, Any], edits: tuple[Edit, ...]) -> dict[str, Any]:
    """A case with a remedy's changes."""
    result = {key: deepcopy(v) if isinstance(v, dict) else v for key, v in case.items()}
    for edit in edits:
        section, _, key = edit.key.partition(".")
        if not key:
            result[section] = edit.value
            continue
        if edit.key.startswith(ENV):
            known: JobEnvironment = result.get("environment") or JobEnvironment()
            variables = {n: v for n, v in known.variables.items() if n != key}
            variables |= {} if edit.value is REMOVED else {key: str(edit.value)}
            result["environment"] = replace(known, variables=variables)
            continue
        content = result.setdefault(_SECTIONS.get(section, section), {})
        *outer, key = key.split(".")
        for name in outer:
            content = content.setdefault(name, {})
        content.pop(key, None)
        if edit.value is not REMOVED:
            content[key] = edit.value
    return result


# Remedies of cases that are no change of settings, each with what is needed instead.
NO_EDITS = {
    "wrong.fsdp-sharded-experts": "a measurement: whether the report is true is not known",
}

SPOKEN = (Outcome.DEFAULT, Outcome.GRANTED)


def judged(name: str, case: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[Decision]]]:
    """A case on every known stack for which the rule holds and speaks, with its decisions."""
    for stack in KNOWN:
        if RULES[name].holds(stack):
            on_it = {**case, "software": replace(case.get("software", EVERYTHING), stack=stack)}
            decisions = decisions_of(**on_it)
            if any(d.rule == name and d.remedy for d in decisions):
                yield on_it, decisions


@pytest.mark.parametrize("name", ALL_CASES)
def test_the_edits_of_a_remedy_mend(name: str) -> None:
    for case, before in judged(name, ALL_CASES[name]):
        for decision in before:
            if decision.rule != name or not decision.edits:
                continue
            after = decisions_of(**edited(case, decision.edits))
            left = {(d.rule, d.knob) for d in after if d.outcome not in SPOKEN}
            assert (name, decision.knob) not in left
            assert findings(after) <= findings(before)


@pytest.mark.parametrize("name", BROKEN | NOTED)
def test_a_remedy_is_a_change_of_settings_or_says_what_it_needs(name: str) -> None:
    told = [d for _, before in judged(name, ALL_CASES[name]) for d in before if d.rule == name]
    without = [d for d in told if d.remedy and not d.edits]
    assert bool(without) is (name in NO_EDITS)


@pytest.mark.parametrize("name", ALL_CASES)
def test_the_text_of_a_remedy_leads_with_its_edits(name: str) -> None:
    for _, before in judged(name, ALL_CASES[name]):
        for decision in before:
            if decision.edits:
                assert (decision.remedy or "").startswith(in_words(decision.edits)), decision


PRECISION: dict[str, dict[str, Any]] = {
    "precision.mxfp8_gather_reuses_grad_buffer": {
        "bf16": True,
        "fp8": "e4m3",
        "fp8_recipe": "mxfp8",
        "fp8_param_gather": True,
    },
    "precision.fp4_excludes_fp8": {"bf16": True, "fp8": "e4m3", "fp4": "e2m1"},
    "precision.fp4_needs_te": {"bf16": True, "fp4": "e2m1", "fp4_param_gather": True},
    "precision.fp8_param_is_fp8_param_gather": {
        "bf16": True,
        "fp8": "e4m3",
        "fp8_param": True,
        "fp8_param_gather": False,
    },
    "precision.fp4_param_is_fp4_param_gather": {
        "bf16": True,
        "fp4": "e2m1",
        "fp4_param": True,
        "fp4_param_gather": False,
    },
    "core.fp8-param-needs": {"bf16": True, "fp8_param": True},
    "core.reuse-grad-buf-needs": {"bf16": True, "reuse_grad_buf_for_mxfp8_param_ag": True},
}


@pytest.mark.parametrize("name", PRECISION)
def test_the_edits_of_a_precision_mend(name: str) -> None:
    old_te = AssumedSoftware(te="2.6.0") if name == "precision.fp4_needs_te" else EVERYTHING
    case = {"mixed_precision": PRECISION[name], "software": old_te}
    told = list(judged(name, case))
    assert told
    for on_it, before in told:
        for decision in [d for d in before if d.rule == name]:
            assert decision.edits
            after = decisions_of(**edited(on_it, decision.edits))
            assert name not in findings(after)
            assert findings(after) <= findings(before)


def test_an_entry_of_env_vars_that_stops_the_job_is_removed() -> None:
    case = {"env_vars": {"NAME": None, "OTHER": "1"}}
    (found,) = [d for d in decisions_of(**case) if d.rule == "launch.env-vars-invalid"]
    assert edited(case, found.edits) == {"env_vars": {"OTHER": "1"}}


def test_edits_in_words() -> None:
    edits = [Edit("ddp.overlap_grad_reduce", True), Edit("ddp.bucket_size", None)]
    assert in_words(edits) == "set ddp.overlap_grad_reduce=true and ddp.bucket_size=null"
    gone = Edit("model.num_moe_experts", REMOVED)
    assert in_words([*edits[:1], gone]) == (
        "set ddp.overlap_grad_reduce=true, and remove model.num_moe_experts"
    )
