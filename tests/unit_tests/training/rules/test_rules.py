"""Every rule of comm_overlap and of Megatron-Core's consequences, made to apply or not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import megatron.bridge

# Imported for the rules that it declares.
import megatron.bridge.recipes.megatron_lm_environment
from megatron.bridge.training.decisions import RULES, Outcome, rule
from megatron.bridge.training.runtime_update import (
    update_runtime,
)
from megatron.bridge.training.software import AssumedSoftware
from support.megatron_lm_cases import every_rule
from support.rule_cases import ALL_CASES, BROKEN, CHOSEN, NOTED, on_stack
from support.rule_runs import (
    DELAY,
    DISTRIBUTED,
    EP,
    EVERYTHING,
    MOE,
    OFF,
    TP4,
    decisions_of,
    findings,
    run_of,
)

# Spoken by another function than update_runtime, and tested below or in another file.
ELSEWHERE = {"any.set-by-hand-overwritten", "any.other-versions"}
DIMENSIONS_HERE = {"wrong.", "tp.", "pp.", "dp.", "ep.", "any.", "core.", "bridge.", "lm."}


@pytest.mark.parametrize(
    "layout",
    ["Et*2|t*2|t*2|t*2L", "E,t*2|(t*2|)*2,t*2L", [["E", "t"], ["t"], ["t"], ["t", "L"]]],
)
def test_the_pipeline_hazard_of_a_layout_is_found(layout: Any) -> None:
    model = {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": layout}
    for comm in (None, OFF):
        assert "pp.same-peer-hazard" in findings(decisions_of(model=model, comm=comm))
    model["virtual_pipeline_model_parallel_size"] = 2
    assert not findings(decisions_of(model=model, comm=OFF))


@pytest.mark.parametrize(
    ("distributed", "interleaved", "gather", "outcome"),
    [
        (True, True, False, Outcome.REFUSED),
        (True, False, True, Outcome.ERROR),
        (False, True, False, Outcome.ERROR),
        (False, False, False, Outcome.ERROR),
    ],
)
def test_what_fails_in_megatron_core_is_no_silent_refusal(
    distributed: bool, interleaved: bool, gather: bool, outcome: Outcome
) -> None:
    # As seen by running each with megatron-core 0.16.1: docs/evidence/README.md, lab-grid.json.
    stages = {
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "overlap_p2p_comm": True,
        "batch_p2p_comm": False,
    }
    told = decisions_of(
        model=stages if interleaved else {},
        ddp={
            "use_distributed_optimizer": distributed,
            "overlap_grad_reduce": True,
            "overlap_param_gather": gather,
        },
        optimizer={"overlap_param_gather_with_optimizer_step": True},
    )
    (found,) = [d for d in told if d.rule == "core.param-gather-with-optimizer-step-needs"]
    assert found.outcome is outcome


def test_delayed_wgrad_keeps_the_overlap_that_it_was_granted_for() -> None:
    model = {**MOE, "overlap_moe_expert_parallel_comm": True}
    run = run_of(model=model, comm={**OFF, "delay_wgrad_compute": True})
    update_runtime(run, 16, software=EVERYTHING)
    assert run.model.overlap_moe_expert_parallel_comm is True
    assert run.ddp.delay_wgrad_compute is True


def test_every_rule_is_exercised_here() -> None:
    here = {name for name in RULES if name.startswith(tuple(DIMENSIONS_HERE))}
    assert here == set(BROKEN) | set(NOTED) | set(CHOSEN) | ELSEWHERE | every_rule()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_need_is_found_with_its_remedy(name: str) -> None:
    found = [
        d for d in decisions_of(**on_stack(name, BROKEN[name])) if d.rule == name and d.is_finding
    ]
    assert found
    assert all(d.reason and d.remedy for d in found)


@pytest.mark.parametrize("name", [name for name in ALL_CASES if RULES[name].versions])
def test_a_rule_ends_with_its_versions(name: str) -> None:
    decisions = decisions_of(**on_stack(name, ALL_CASES[name], holds=False))
    assert name not in {d.rule for d in decisions}
    assert RULES[name].source


def test_a_bug_that_a_version_fixed_is_avoided_by_upgrading() -> None:
    name = "core.sent-then-freed"
    (note,) = [d for d in decisions_of(**on_stack(name, NOTED[name])) if d.rule == name]
    assert note.remedy is not None
    assert note.remedy.endswith("or use megatron-core 0.18.0 or newer")


ASSIGNMENT = re.compile(r"\b(model|ddp|optimizer|comm_overlap)\.(\w+)=([\w.]+)")


def remedies(name: str) -> list[tuple[str, str, Any]]:
    """What the first alternative of a finding's remedy says to set: section, key, value."""
    found = next(
        d for d in decisions_of(**on_stack(name, BROKEN[name])) if d.rule == name and d.is_finding
    )
    first = (found.remedy or "").partition(", or ")[0].partition("; ")[0]
    return [(s, key, yaml.safe_load(value)) for s, key, value in ASSIGNMENT.findall(first)]


@pytest.mark.parametrize("name", [name for name in BROKEN if remedies(name)])
def test_a_remedy_mends(name: str) -> None:
    sections = {
        key: dict(v) if isinstance(v, dict) else v
        for key, v in on_stack(name, BROKEN[name]).items()
    }
    for section, key, value in remedies(name):
        into = "comm" if section == "comm_overlap" else section
        sections.setdefault(into, {})[key] = value
    before, after = decisions_of(**on_stack(name, BROKEN[name])), decisions_of(**sections)
    assert name not in findings(after)
    assert findings(after) <= findings(before)


@pytest.mark.parametrize("name", NOTED)
def test_a_note_is_no_finding(name: str) -> None:
    told = [d for d in decisions_of(**on_stack(name, NOTED[name])) if d.rule == name]
    assert told
    assert all(d.outcome is Outcome.NOTE for d in told)


def test_an_activation_that_is_freed_too_early_is_wrong_over_gloo_alone() -> None:
    name = "core.sent-then-freed"
    case = on_stack(name, NOTED[name])
    over_gloo = decisions_of(**case, dist={"distributed_backend": "gloo"})
    (wrong,) = (d for d in over_gloo if d.rule == name)
    (untested,) = (d for d in decisions_of(**case) if d.rule == name)
    assert wrong.outcome is Outcome.WRONG_NUMBERS and "over gloo that trains" in wrong.reason
    assert untested.outcome is Outcome.NOTE and "not tried here" in untested.reason


@pytest.mark.parametrize(("new", "contradicts"), [([], False), ([16], True)])
def test_values_that_cannot_be_hashed_are_compared(new: Any, contradicts: bool) -> None:
    name = "core.flex-sm-counts"
    case = {"model": {"moe_deepep_num_sms": [], "moe_hybridep_num_sms": new}}
    rules = {d.rule for d in decisions_of(**on_stack(name, case))}
    assert (name in rules) is contradicts


@pytest.mark.parametrize("name", CHOSEN)
def test_a_choice_says_why(name: str) -> None:
    told = [d for d in decisions_of(**on_stack(name, CHOSEN[name])) if d.rule == name]
    assert told
    assert all(d.outcome in (Outcome.DEFAULT, Outcome.GRANTED) and d.reason for d in told)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": TP4, "comm": {"tp_comm_overlap": True}, "ddp": DISTRIBUTED},
        {"model": MOE, "comm": DELAY, "ddp": DISTRIBUTED},
        {
            "model": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
            "comm": OFF,
        },
        {"model": {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2}},
        {},
    ],
)
def test_sound_configurations_have_no_findings(sections: dict[str, Any]) -> None:
    assert findings(decisions_of(**sections)) == set()


def test_rules_point_at_their_declaration() -> None:
    root = Path(megatron.bridge.__file__).parents[2]
    for name, declared in RULES.items():
        lines = (root / declared.path).read_text().splitlines()
        statement = "\n".join(lines[declared.line - 1 : declared.line + 4])
        last = name.partition(".")[2].removeprefix("delay-")
        assert f'"{last}"' in statement or f'"{name}"' in statement, name


def test_a_rule_is_declared_once() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        rule("tp.needs-sequence-parallel", "TP", claim="another")


def test_presets_are_suggested_by_precision_and_sizes() -> None:
    model = {**TP4, "hidden_size": 8192, "num_attention_heads": 64}
    comm = {"tp_comm_overlap": True}
    told = {d.rule: d for d in decisions_of(model=model, comm=comm)}
    fitting = "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192"
    assert fitting in (told["tp.userbuffers-default"].remedy or "")
    comm = {"tp_comm_overlap": True, "tp_comm_overlap_cfg": fitting}
    rules = {d.rule for d in decisions_of(model=model, comm=comm)}
    assert "tp.preset-fit" not in rules
    told = {d.rule: d for d in decisions_of(model={**model, "fp8": "e4m3"}, comm=comm)}
    assert "userbuffers_fp8_h100_h8192_tp4" in (told["tp.preset-fit"].remedy or "")


def test_first_unmet_need_is_the_reason() -> None:
    told = decisions_of(comm={"tp_comm_overlap": True}, software=AssumedSoftware(te=None))
    assert findings(told) == {"tp.needs-tensor-parallel"}


def test_every_broken_expert_need_is_told_at_once() -> None:
    model = {**MOE, "bf16": False, "recompute_granularity": "full"}
    told = findings(decisions_of(model=model, comm=EP))
    assert {"ep.needs-half-precision", "ep.no-full-recompute"} <= told


def test_cuda_graph_scope_is_read_under_either_name() -> None:
    for field in ("cuda_graph_scope", "cuda_graph_modules"):
        scope = {"cuda_graph_scope": None, field: "attn,mlp"}
        model = {**MOE, **scope, "gradient_accumulation_fusion": False}
        told = findings(decisions_of(model=model, comm=DELAY))
        assert "ep.delay-graph-needs-fusion" in told, field


def test_context_parallel_ranks_are_told_of_at_data_parallel_size_1() -> None:
    told = decisions_of(
        model={"context_parallel_size": 16}, ddp=DISTRIBUTED, comm=OFF, world_size=16
    )
    reason = next(d.reason for d in told if d.knob == "ddp.overlap_grad_reduce")
    assert "16 context-parallel ranks still reduce" in reason


def test_a_request_that_the_optimizer_holds_by_itself_is_granted() -> None:
    told = decisions_of(
        optimizer={"overlap_param_gather_with_optimizer_step": True},
        comm={**OFF, "overlap_param_gather_with_optimizer_step": True},
    )
    decision = next(d for d in told if d.rule == "dp.needs-distributed-optimizer" and d.requested)
    assert (decision.effective, decision.outcome) == (True, Outcome.GRANTED)
