"""Every remedy that is a change of settings, made to the configuration that needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.edits import ENV, REMOVED, Edit, in_words
from megatron.bridge.training.job_environment import JobEnvironment
from support.rule_cases import ALL_CASES, BROKEN, on_stack
from support.rule_runs import decisions_of, findings

_SECTIONS = {"comm_overlap": "comm"}


def edited(case: dict[str, Any], edits: tuple[Edit, ...]) -> dict[str, Any]:
    """A case with a remedy's changes."""
    result = {key: dict(v) if isinstance(v, dict) else v for key, v in case.items()}
    for edit in edits:
        section, _, key = edit.key.partition(".")
        if edit.key.startswith(ENV):
            known: JobEnvironment = result.get("environment") or JobEnvironment()
            variables = {n: v for n, v in known.variables.items() if n != key}
            variables |= {} if edit.value is REMOVED else {key: str(edit.value)}
            result["environment"] = replace(known, variables=variables)
            continue
        content = result.setdefault(_SECTIONS.get(section, section), {})
        content.pop(key, None)
        if edit.value is not REMOVED:
            content[key] = edit.value
    return result


def decided(name: str, case: dict[str, Any]) -> list[Decision]:
    return [d for d in decisions_of(**case) if d.rule == name]


WITH_EDITS = [
    name
    for name in ALL_CASES
    if any(d.edits for d in decided(name, on_stack(name, ALL_CASES[name])))
]


@pytest.mark.parametrize("name", WITH_EDITS)
def test_the_edits_of_a_remedy_mend(name: str) -> None:
    case = on_stack(name, ALL_CASES[name])
    before = decisions_of(**case)
    for decision in [d for d in before if d.rule == name and d.edits]:
        after = decisions_of(**edited(case, decision.edits))
        assert (name, decision.knob) not in {
            (d.rule, d.knob) for d in after if d.outcome is decision.outcome
        }
        assert findings(after) <= findings(before)


# The rules of findings whose remedy is no change of settings yet.
NOT_YET = {
    name for name in BROKEN if not any(d.edits for d in decided(name, on_stack(name, BROKEN[name])))
}


def test_edits_in_words() -> None:
    edits = [Edit("ddp.overlap_grad_reduce", True), Edit("ddp.bucket_size", None)]
    assert in_words(edits) == "set ddp.overlap_grad_reduce=true and ddp.bucket_size=null"
    gone = Edit("model.num_moe_experts", REMOVED)
    assert in_words([*edits[:1], gone]) == (
        "set ddp.overlap_grad_reduce=true, and remove model.num_moe_experts"
    )
