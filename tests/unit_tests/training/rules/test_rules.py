"""Every rule of comm_overlap and of Megatron-Core's consequences, made to speak or be silent."""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import megatron.bridge

# Imported for the rules that it declares.
import megatron.bridge.recipes.megatron_lm_environment
from megatron.bridge.training.bucket_size import (
    BRIDGE_BUCKET_SIZE,
    SMALLEST_BUCKET,
    auto_bucket_size,
)
from megatron.bridge.training.comm_overlap import CommOverlapConfig, _CommOverlapConfig
from megatron.bridge.training.decisions import RULES, Decision, Outcome, OverlapConfigError, rule
from megatron.bridge.training.runtime_update import (
    compare_with_request,
    data_parallel_size,
    update_runtime,
)
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.schema import section_fields
from support.megatron_lm_cases import every_rule
from support.property_tests import examples

EVERYTHING = AssumedSoftware()


def section(name: str, **values: Any) -> SimpleNamespace:
    """A configuration with Megatron-Core's defaults; torch-free."""
    defaults = {key: known.default for key, known in section_fields(name).items()}
    return SimpleNamespace(**{**defaults, **values})


def run_of(
    *,
    model: dict[str, Any] | None = None,
    ddp: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    comm: dict[str, Any] | None = None,
) -> SimpleNamespace:
    sizes = {"num_layers": 8, "hidden_size": 256, "num_attention_heads": 8, "vocab_size": 1024}
    return SimpleNamespace(
        model=section("model", **{**sizes, **(model or {})}),
        ddp=section("ddp", **(ddp or {})),
        optimizer=section("optimizer", **(optimizer or {})),
        mixed_precision=None,
        comm_overlap=None if comm is None else CommOverlapConfig(**comm),
    )


def decisions_of(
    *, world_size: int = 16, software: AssumedSoftware = EVERYTHING, **sections: Any
) -> list[Decision]:
    update = update_runtime(run_of(**sections), world_size, software=software, strict=False)
    return update.decisions


def findings(decisions: list[Decision]) -> set[str]:
    return {d.rule for d in decisions if d.is_finding}


OFF = {"tp_comm_overlap": False}
DISTRIBUTED = {"use_distributed_optimizer": True}
MOE = {
    "num_moe_experts": 8,
    "expert_model_parallel_size": 4,
    "expert_tensor_parallel_size": 1,
    "moe_token_dispatcher_type": "alltoall",
    "bf16": True,
}
EP = {"tp_comm_overlap": False, "overlap_moe_expert_parallel_comm": True}
DELAY = {**EP, "delay_wgrad_compute": True}
TP4 = {"tensor_model_parallel_size": 4, "sequence_parallel": True}

# Each rule that finds something, with a configuration that it finds it in.
BROKEN: dict[str, dict[str, Any]] = {
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
    "core.ep-overlap-needs": {"model": {**MOE, "mtp_num_layers": 0}, "comm": EP},
    "core.delay-wgrad-needs": {
        "model": {**MOE, "moe_use_legacy_grouped_gemm": True},
        "comm": DELAY,
    },
    "core.shared-expert-overlap-needs": {
        "model": {
            **MOE,
            "moe_token_dispatcher_type": "flex",
            "moe_shared_expert_intermediate_size": 64,
            "moe_shared_expert_overlap": True,
        }
    },
    "core.param-gather-needs": {"ddp": {"overlap_param_gather": True, "overlap_grad_reduce": True}},
    "core.param-gather-with-optimizer-step-needs": {
        "ddp": {**DISTRIBUTED, "overlap_grad_reduce": True},
        "optimizer": {**DISTRIBUTED, "overlap_param_gather_with_optimizer_step": True},
    },
    "core.bucket-ignored": {"ddp": {"bucket_size": 1_000_000}},
}

# Each note, with a configuration that draws it.
NOTED: dict[str, dict[str, Any]] = {
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
ELSEWHERE = {"any.set-by-hand-overwritten"}
DIMENSIONS_HERE = {"tp.", "pp.", "dp.", "ep.", "any.", "core.", "lm."}


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
    found = [d for d in decisions_of(**BROKEN[name]) if d.rule == name and d.is_finding]
    assert found
    assert all(d.reason and d.remedy for d in found)


ASSIGNMENT = re.compile(r"\b(model|ddp|optimizer|comm_overlap)\.(\w+)=([\w.]+)")


def remedies(name: str) -> list[tuple[str, str, Any]]:
    """What the first alternative of a finding's remedy says to set: section, key, value."""
    found = next(d for d in decisions_of(**BROKEN[name]) if d.rule == name and d.is_finding)
    first = (found.remedy or "").partition(", or ")[0].partition("; ")[0]
    return [(s, key, yaml.safe_load(value)) for s, key, value in ASSIGNMENT.findall(first)]


@pytest.mark.parametrize("name", [name for name in BROKEN if remedies(name)])
def test_a_remedy_mends(name: str) -> None:
    sections = {key: dict(v) if isinstance(v, dict) else v for key, v in BROKEN[name].items()}
    for section, key, value in remedies(name):
        into = "comm" if section == "comm_overlap" else section
        sections.setdefault(into, {})[key] = value
    before, after = decisions_of(**BROKEN[name]), decisions_of(**sections)
    assert name not in findings(after)
    assert findings(after) <= findings(before)


@pytest.mark.parametrize("name", NOTED)
def test_a_note_is_no_finding(name: str) -> None:
    told = [d for d in decisions_of(**NOTED[name]) if d.rule == name]
    assert told
    assert all(d.outcome is Outcome.NOTE for d in told)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_choice_says_why(name: str) -> None:
    told = [d for d in decisions_of(**CHOSEN[name]) if d.rule == name]
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


def test_finalize_records_the_request_once() -> None:
    config = CommOverlapConfig(tp_comm_overlap=True, bucket_size=5)
    config.finalize()
    config.bucket_size = 6
    config.finalize()
    assert config.user_comm_overlap_cfg is not None
    assert config.user_comm_overlap_cfg.bucket_size == 5


def test_knobs_of_request_and_resolution_agree() -> None:
    asked = {f.name for f in fields(CommOverlapConfig)} - {"data_parallel_size"}
    assert asked == {f.name for f in fields(_CommOverlapConfig)}


def test_keyword_only() -> None:
    with pytest.raises(TypeError):
        CommOverlapConfig(True)  # type: ignore[misc]


def test_apply_leaves_unset_knobs_alone() -> None:
    config = CommOverlapConfig(tp_comm_overlap=False)
    target = SimpleNamespace(overlap_p2p_comm=True, bucket_size=7, tp_comm_overlap_cfg={"a": 1})
    config._apply_cfgs(_CommOverlapConfig(), target)
    assert target == SimpleNamespace(
        overlap_p2p_comm=True, bucket_size=None, tp_comm_overlap_cfg=None
    )


def test_data_parallel_size_is_required() -> None:
    config = CommOverlapConfig(tp_comm_overlap=False)
    with pytest.raises(OverlapConfigError, match="data_parallel_size"):
        config._get_optimizer_overlap_cfgs(section("model"))


def test_setup_refuses_before_it_changes_anything() -> None:
    config = CommOverlapConfig(data_parallel_size=4, **EP)
    model, ddp = section("model"), section("ddp", **DISTRIBUTED)
    before = (dict(vars(model)), dict(vars(ddp)))
    with pytest.raises(OverlapConfigError):
        config.setup(model, section("optimizer"), ddp)
    assert (dict(vars(model)), dict(vars(ddp))) == before
    assert any(d.outcome is Outcome.ERROR for d in config.decisions)


def test_a_refusal_is_logged_with_its_remedy(caplog: pytest.LogCaptureFixture) -> None:
    config = CommOverlapConfig(tp_comm_overlap=True, data_parallel_size=4)
    with caplog.at_level(logging.WARNING):
        config.setup(section("model"), section("optimizer"), section("ddp"))
    assert "tp.needs-tensor-parallel" in caplog.text
    assert "tensor_model_parallel_size to 2" in caplog.text


def test_delayed_wgrad_reaches_ddp() -> None:
    config = CommOverlapConfig(data_parallel_size=4, **DELAY)
    model, ddp = section("model", **MOE), section("ddp", **DISTRIBUTED)
    config.apply(config.resolve(model, ddp, EVERYTHING), model, section("optimizer"), ddp)
    assert model.delay_wgrad_compute is True
    assert ddp.delay_wgrad_compute is True


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


def test_layout_must_divide_the_world() -> None:
    with pytest.raises(OverlapConfigError, match=r"world size \(6\).*= 4"):
        data_parallel_size(section("model", tensor_model_parallel_size=4), 6)


def test_a_request_that_the_optimizer_holds_by_itself_is_granted() -> None:
    told = decisions_of(
        optimizer={"overlap_param_gather_with_optimizer_step": True},
        comm={**OFF, "overlap_param_gather_with_optimizer_step": True},
    )
    decision = next(d for d in told if d.rule == "dp.needs-distributed-optimizer" and d.requested)
    assert (decision.effective, decision.outcome) == (True, Outcome.GRANTED)


def test_optimizer_switch_alone_leaves_data_parallel_overlap_off() -> None:
    run = run_of(optimizer=DISTRIBUTED, comm=OFF)
    update_runtime(run, 16, software=EVERYTHING)
    assert run.ddp.use_distributed_optimizer is True
    assert run.ddp.overlap_grad_reduce is False


def test_values_set_by_hand_and_overwritten_are_refusals() -> None:
    run = run_of(ddp={**DISTRIBUTED, "bucket_size": 7}, comm=OFF)
    update = update_runtime(run, 16, software=EVERYTHING)
    asked = {"ddp.bucket_size": 7, "model.elsewhere": True}
    effective = {"ddp.bucket_size": run.ddp.bucket_size, "model.elsewhere": False}
    held = compare_with_request(update.decisions, asked, effective)
    refused = {d.knob: d for d in held if d.outcome is Outcome.REFUSED}
    assert refused["ddp.bucket_size"].requested == 7
    assert refused["ddp.bucket_size"].rule == "dp.bucket-size"
    assert refused["model.elsewhere"].rule == "any.set-by-hand-overwritten"


class TestAutoBucketSize:
    @given(st.integers(1, 2**40), st.integers(1, 20_000))
    def test_bounds(self, parameters: int, ranks: int) -> None:
        assert SMALLEST_BUCKET <= auto_bucket_size(parameters, ranks) <= BRIDGE_BUCKET_SIZE

    @given(st.integers(4 * SMALLEST_BUCKET, 2**40), st.integers(1, 20_000))
    def test_several_buckets_for_every_model_that_is_not_trivial(
        self, parameters: int, ranks: int
    ) -> None:
        assert parameters / auto_bucket_size(parameters, ranks) > 3.99

    def test_few_ranks_get_sixteen_and_many_get_larger_buckets(self) -> None:
        assert auto_bucket_size(160_000_000, 2) == 10_000_000
        assert auto_bucket_size(160_000_000, 256) > 30_000_000


KNOBS = {
    f.name: st.none() | st.booleans()
    for f in fields(CommOverlapConfig)
    if "bool" in str(f.type) and f.name != "tp_comm_overlap"
}
RANDOM_COMM = st.fixed_dictionaries(
    {
        "tp_comm_overlap": st.booleans(),
        "bucket_size": st.none() | st.just("auto") | st.integers(1, 10**9),
        "wgrad_deferral_limit": st.none() | st.integers(-1, 8),
        **KNOBS,
    }
)
RANDOM_MODEL = st.fixed_dictionaries(
    {
        "tensor_model_parallel_size": st.sampled_from([1, 2]),
        "sequence_parallel": st.booleans(),
        "pipeline_model_parallel_size": st.sampled_from([1, 2, 4]),
        "virtual_pipeline_model_parallel_size": st.sampled_from([None, 1, 2]),
        "context_parallel_size": st.sampled_from([1, 2]),
        "bf16": st.booleans(),
        "num_moe_experts": st.sampled_from([None, 8]),
        "expert_model_parallel_size": st.sampled_from([1, 2]),
        "moe_token_dispatcher_type": st.sampled_from(["allgather", "alltoall", "flex"]),
    }
)
RANDOM_DDP = st.fixed_dictionaries(
    {
        "use_distributed_optimizer": st.booleans(),
        "overlap_grad_reduce": st.booleans(),
        "overlap_param_gather": st.booleans(),
        "bucket_size": st.none() | st.integers(1, 10**9),
    }
)


class TestAnyRequest:
    @examples(75, 1500)
    @given(comm=RANDOM_COMM, model=RANDOM_MODEL, ddp=RANDOM_DDP)
    def test_setup_twice_equals_once(
        self, comm: dict[str, Any], model: dict[str, Any], ddp: dict[str, Any]
    ) -> None:
        run = run_of(model=model, ddp=ddp, comm=comm)
        config = run.comm_overlap
        config.data_parallel_size = 4

        def apply() -> Any:
            resolution = config.resolve(run.model, run.ddp, EVERYTHING)
            config.apply(resolution, run.model, run.optimizer, run.ddp)
            return {name: dict(vars(getattr(run, name))) for name in ("model", "optimizer", "ddp")}

        request = asdict(config)
        assert apply() == apply()
        assert asdict(config) == request

    @examples(75, 1500)
    @given(comm=RANDOM_COMM, model=RANDOM_MODEL)
    def test_user_values_win_unless_a_decision_says_why_not(
        self, comm: dict[str, Any], model: dict[str, Any]
    ) -> None:
        run = run_of(model=model, ddp=DISTRIBUTED, comm=comm)
        run.comm_overlap.data_parallel_size = 4
        resolution = run.comm_overlap.resolve(run.model, run.ddp, EVERYTHING)
        told = {d.knob.rpartition(".")[2] for d in resolution.decisions if d.is_finding}
        run.comm_overlap.apply(resolution, run.model, run.optimizer, run.ddp)
        for knob, asked in comm.items():
            if asked is None or knob in told or asked == "auto":
                continue
            holders = [s for s in (run.model, run.ddp, run.optimizer) if hasattr(s, knob)]
            assert holders
            assert all(getattr(holder, knob) == asked for holder in holders), knob
