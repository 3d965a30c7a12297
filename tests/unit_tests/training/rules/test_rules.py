"""Every rule of comm_overlap and of Megatron-Core's consequences, made to apply or not."""

from __future__ import annotations

import re
from dataclasses import replace
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
from megatron.bridge.training.versions import KNOWN
from support import machine_cases, newer_stack_cases
from support.megatron_lm_cases import every_rule
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


def on_stack(name: str, case: dict[str, Any], *, holds: bool = True) -> dict[str, Any]:
    """A case on the newest known stack for which the rule holds, or does not."""
    stack = next(s for s in reversed(KNOWN) if RULES[name].holds(s) is holds)
    return {**case, "software": replace(case.get("software", EVERYTHING), stack=stack)}


MXFP8_GATHER = {
    **DISTRIBUTED,
    "fp8_param_gather": True,
    "reuse_grad_buf_for_mxfp8_param_ag": True,
}

# Each rule that finds something, with a configuration that it finds it in.
BROKEN: dict[str, dict[str, Any]] = {
    **newer_stack_cases.BROKEN,
    **machine_cases.BROKEN,
    "tp.needs-tensor-parallel": {"comm": {"tp_comm_overlap": True}},
    "tp.needs-sequence-parallel": {
        "model": {**TP4, "sequence_parallel": False},
        "comm": {"tp_comm_overlap": True},
    },
    "tp.needs-transformer-engine": {
        "model": TP4,
        "comm": {"tp_comm_overlap": True},
        "software": AssumedSoftware(te=None),
    },
    "pp.same-peer-hazard": {
        "model": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    },
    "wrong.optimizer-instances": {
        "ddp": {**DISTRIBUTED, "num_distributed_optimizer_instances": 2},
        "comm": OFF,
    },
    "wrong.mxfp8-experts-cleared": {
        "model": MOE,
        "ddp": MXFP8_GATHER,
        "comm": {**OFF, "overlap_param_gather": False},
    },
    "wrong.mxfp8-gathers-differ": {
        "ddp": {**MXFP8_GATHER, "overlap_grad_reduce": True, "overlap_param_gather": True},
        # Megatron-Bridge keeps them equal since 0.5.1, with the core that has no such bug.
    },
    "wrong.mxfp8-with-optimizer-step": {
        "model": {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
        "ddp": MXFP8_GATHER,
        "comm": {**OFF, "overlap_param_gather_with_optimizer_step": True},
    },
    "wrong.fp8-forced-gather": {
        "ddp": {**DISTRIBUTED, "fp8_param_gather": True},
        "comm": OFF,
        "train": {"eval_iters": 10, "eval_interval": 100},
    },
    "dp.needs-distributed-optimizer": {"comm": {**OFF, "overlap_grad_reduce": True}},
    "dp.bucket-size-value": {"ddp": DISTRIBUTED, "comm": {**OFF, "bucket_size": "big"}},
    "ep.needs-expert-parallel": {"model": {**MOE, "expert_model_parallel_size": 1}, "comm": EP},
    "ep.needs-experts": {"model": {**MOE, "num_moe_experts": None}, "comm": EP},
    "ep.needs-dispatcher": {
        "model": {**MOE, "moe_token_dispatcher_type": "allgather"},
        "comm": EP,
    },
    "ep.needs-half-precision": {"model": {**MOE, "bf16": False}, "comm": EP},
    "ep.needs-torch": {
        "model": MOE,
        "comm": EP,
        "software": AssumedSoftware(torch="2.5.1"),
    },
    "ep.needs-virtual-pipeline": {
        "model": {**MOE, "pipeline_model_parallel_size": 2},
        "comm": EP,
    },
    "ep.no-full-recompute": {"model": {**MOE, "recompute_granularity": "full"}, "comm": EP},
    "ep.no-recompute-method": {"model": {**MOE, "recompute_method": "block"}, "comm": EP},
    "ep.no-recompute-layers": {"model": {**MOE, "recompute_num_layers": 1}, "comm": EP},
    "ep.no-moe-recompute": {"model": {**MOE, "recompute_modules": ["moe"]}, "comm": EP},
    "ep.no-shared-expert-overlap": {
        "model": {**MOE, "moe_shared_expert_overlap": True},
        "comm": EP,
    },
    "ep.one-mtp-layer": {"model": {**MOE, "mtp_num_layers": 2}, "comm": EP},
    "ep.delay-needs-ep-overlap": {
        "model": MOE,
        "comm": {"tp_comm_overlap": False, "delay_wgrad_compute": True},
    },
    "ep.delay-needs-te-2.7": {
        "model": {**MOE, "gradient_accumulation_fusion": True},
        "comm": DELAY,
        "software": AssumedSoftware(te="2.6.0"),
    },
    "ep.delay-graph-needs-te-2.12": {
        "model": {**MOE, "cuda_graph_scope": ["attn"], "gradient_accumulation_fusion": True},
        "comm": DELAY,
        "software": AssumedSoftware(te="2.11"),
    },
    "ep.delay-graph-needs-fusion": {
        "model": {
            **MOE,
            "cuda_graph_scope": ["moe_router"],
            "moe_shared_expert_intermediate_size": 64,
            "gradient_accumulation_fusion": False,
        },
        "comm": DELAY,
    },
    "ep.delay-graph-no-attention-bias": {
        "model": {
            **MOE,
            "cuda_graph_scope": ["attn"],
            "gradient_accumulation_fusion": True,
            "add_bias_linear": True,
        },
        "comm": DELAY,
    },
    "core.reuse-grad-buf-needs": {"ddp": {"reuse_grad_buf_for_mxfp8_param_ag": True}},
    "core.fp8-param-needs": {"model": {"fp8_param": True}},
    "core.sequence-parallel": {"model": {"sequence_parallel": True}},
    "core.p2p-modes-exclude": {
        "model": {
            "pipeline_model_parallel_size": 4,
            "virtual_pipeline_model_parallel_size": 2,
            "overlap_p2p_comm": True,
            "batch_p2p_comm": True,
        }
    },
    "core.p2p-overlap-needs-interleaving": {
        "model": {"pipeline_model_parallel_size": 4, "overlap_p2p_comm": True}
    },
    "core.p2p-warmup-flush": {"model": {"overlap_p2p_comm_warmup_flush": True}},
    "core.defer-embedding-wgrad": {
        "model": {"pipeline_model_parallel_size": 4, "gradient_accumulation_fusion": True},
        "comm": {**OFF, "defer_embedding_wgrad_compute": True},
    },
    "core.expert-parallel-needs-experts": {"model": {"expert_model_parallel_size": 4}},
    "core.ep-overlap-mtp-zero": {"model": {**MOE, "mtp_num_layers": 0}, "comm": EP},
    "core.ep-overlap-mtp-needs-pipeline": {"model": {**MOE, "mtp_num_layers": 1}, "comm": EP},
    "core.ep-overlap-graph-kind": {
        "model": {**MOE, "cuda_graph_impl": "local", "cuda_graph_scope": "full_iteration"},
        "comm": EP,
    },
    "core.ep-overlap-needs": {
        "model": {**MOE, "cuda_graph_impl": "transformer_engine", "cuda_graph_scope": ["moe"]},
        "comm": EP,
    },
    "core.early-release-needs-ep-overlap": {
        "model": {**MOE, "ep_overlap_early_attn_memory_release": True}
    },
    "core.dispatch-wgrad-excludes": {
        "model": {**MOE, "overlap_dispatch_backward_with_experts_wgrad": True},
        "comm": EP,
    },
    "core.dispatch-wgrad-needs-te": {
        "model": {**MOE, "overlap_dispatch_backward_with_experts_wgrad": True},
        "software": AssumedSoftware(te="2.2.0"),
    },
    "core.delay-wgrad-needs": {"model": {**MOE, "delay_wgrad_compute": True}},
    "core.delay-wgrad-legacy-gemm": {
        "model": {**MOE, "moe_use_legacy_grouped_gemm": True},
        "comm": DELAY,
    },
    "core.delay-wgrad-graph-needs-te": {
        "model": {**MOE, "cuda_graph_impl": "transformer_engine", "cuda_graph_scope": ["mamba"]},
        "comm": DELAY,
        "software": AssumedSoftware(te="2.9.0"),
    },
    "bridge.local-graph-scopes": {
        "model": {"cuda_graph_impl": "local", "cuda_graph_modules": ["attn"]}
    },
    "core.num-buckets-excludes": {
        "ddp": {**DISTRIBUTED, "num_buckets": 4},
        "comm": OFF,
    },
    "core.mxfp8-gather-needs-reuse": {
        "model": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
        "ddp": {**DISTRIBUTED, "fp8_param_gather": True},
    },
    "core.mxfp8-reuse-excludes-step": {
        "model": {
            "fp8": "e4m3",
            "fp8_recipe": "mxfp8",
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
        },
        "ddp": {
            **DISTRIBUTED,
            "fp8_param_gather": True,
            "reuse_grad_buf_for_mxfp8_param_ag": True,
        },
        "comm": {**OFF, "overlap_param_gather_with_optimizer_step": True},
    },
    "core.optimizer-instances-need": {"ddp": {"num_distributed_optimizer_instances": 2}},
    "core.shared-expert-overlap-needs": {
        "model": {
            **MOE,
            "moe_token_dispatcher_type": "flex",
            "moe_shared_expert_intermediate_size": 64,
            "moe_shared_expert_overlap": True,
        }
    },
    "core.param-gather-needs": {"ddp": {**DISTRIBUTED, "overlap_param_gather": True}},
    "core.param-gather-with-optimizer-step-needs": {
        "ddp": {**DISTRIBUTED, "overlap_grad_reduce": True},
        "optimizer": {**DISTRIBUTED, "overlap_param_gather_with_optimizer_step": True},
    },
    "core.bucket-ignored": {"ddp": {"bucket_size": 1_000_000}},
}

# Each note, with a configuration that draws it.
NOTED: dict[str, dict[str, Any]] = {
    **newer_stack_cases.NOTED,
    "wrong.fsdp-sharded-experts": {
        "model": {**MOE, "expert_model_parallel_size": 16},
        "ddp": {
            "use_megatron_fsdp": True,
            "data_parallel_sharding_strategy": "optim_grads_params",
        },
    },
    "tp.userbuffers-default": {"model": TP4, "comm": {"tp_comm_overlap": True}},
    "tp.preset-fit": {
        "model": TP4,
        "comm": {
            "tp_comm_overlap": True,
            "tp_comm_overlap_cfg": "userbuffers_fp8_b200_h8192_tp2_mbs1_seqlen8192",
        },
    },
    "dp.distributed-optimizer-sync": {"optimizer": DISTRIBUTED},
    "core.no-replica": {"ddp": {"overlap_grad_reduce": True}, "world_size": 1},
    "core.fsdp": {"ddp": {"use_megatron_fsdp": True}},
    "core.bucket-default": {"ddp": {"overlap_grad_reduce": True}},
    "core.bucket-count": {"ddp": {"overlap_grad_reduce": True}},
    "core.single-bucket": {"ddp": {"overlap_grad_reduce": True}},
    "core.layout-sets-vpp": {
        "model": {
            "pipeline_model_parallel_size": 4,
            "pipeline_model_parallel_layout": "Et|(t|)*6tL",
        },
    },
    "dp.param-gather-sync": {
        "ddp": {**DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True}
    },
    "core.sent-then-freed": {
        "model": {
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "deallocate_pipeline_outputs": True,
        },
        "comm": OFF,
    },
    "core.first-chunk-only": {
        "model": {"pipeline_model_parallel_size": 4},
        "ddp": {"overlap_grad_reduce": True},
    },
}

# Rules that only ever grant or choose a default, with one configuration each.
CHOSEN: dict[str, dict[str, Any]] = {
    "any.user-wins": {
        "ddp": DISTRIBUTED,
        "comm": {**OFF, "overlap_grad_reduce": False},
    },
    "any.no-comm-overlap": {},
    "tp.off-unless-asked": {"comm": OFF},
    "tp.bootstrap-backend": {"comm": OFF},
    "pp.none": {"comm": OFF},
    "pp.interleaved": {
        "model": {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
        "comm": OFF,
    },
    "pp.not-interleaved": {"model": {"pipeline_model_parallel_size": 4}, "comm": OFF},
    "pp.wgrad-deferral": {"comm": OFF},
    "ep.off-unless-asked": {"comm": OFF},
    "dp.size-1": {"ddp": DISTRIBUTED, "comm": OFF, "world_size": 1},
    "dp.defaults": {"ddp": DISTRIBUTED, "comm": OFF},
    "dp.bucket-size": {"ddp": DISTRIBUTED, "comm": OFF},
    "dp.align-param-gather": {"ddp": DISTRIBUTED, "comm": OFF},
    "dp.param-gather-with-optimizer-step": {"ddp": DISTRIBUTED, "comm": OFF},
}

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


ALL_CASES = BROKEN | NOTED | CHOSEN


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
