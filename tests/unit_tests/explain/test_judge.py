"""What the versions that a run may also have do otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.versions import KNOWN
from overlapkit.config.reading import Reading
from overlapkit.config.sources import read_sources
from overlapkit.config.versions import keys_in
from overlapkit.explain.assumptions import assume
from overlapkit.explain.judge import other_stacks
from overlapkit.explain.report import Report, explain
from overlapkit.explain.stack_document import stack_text

EXPERTS = {
    "num_layers": 8,
    "num_moe_experts": 8,
    "expert_model_parallel_size": 4,
    "moe_token_dispatcher_type": "alltoall",
    "bf16": True,
}
EP = {"tp_comm_overlap": False, "overlap_moe_expert_parallel_comm": True}


@pytest.fixture
def report_of(config: Callable[..., str]) -> Callable[..., Report]:
    """`report_of(data, **reading)`: explain's report on a file with this content, on 8 GPUs."""

    def report(data: dict[str, Any], **reading: Any) -> Report:
        path = config(yaml.safe_dump(data))
        (settings,) = read_sources([path], command="explain", reading=Reading(**reading))
        return explain(settings, 8, assume("h100", None, None, {}))

    return report


def told(report: Report) -> dict[str, Decision]:
    return {d.reason: d for d in report.decisions if d.rule == "any.other-versions"}


def dump(model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A file that Bridge 0.4.2 or any newer one may have written: one section in full."""
    precision = {key: span.default for key, span in keys_in("mixed_precision", 1).items()}
    precision["bf16"] = True
    return {
        "_target_": "megatron.bridge.training.config.ConfigContainer",
        "model": model,
        "ddp": None,
        "mixed_precision": precision,
        **sections,
    }


def test_where_several_versions_fit_all_are_named(report_of: Callable[..., Report]) -> None:
    report = report_of(dump({"num_layers": 8}))
    assert [stack.core for stack in report.basis.candidates] == [s.core for s in KNOWN[1:]]
    text = stack_text(report.basis)
    assert text == "core 0.17, 0.18, 0.19 or 0.20, by its fields"
    assert told(report) == {}


def test_where_they_judge_differently_it_is_a_note(report_of: Callable[..., Report]) -> None:
    report = report_of(dump({**EXPERTS, "mtp_num_layers": 0}, comm_overlap=EP))
    (reason,) = told(report)
    assert reason.startswith("with megatron-core 0.17.1 and 0.18.2: mtp_num_layers is 0")
    remedy = told(report)[reason].remedy or ""
    assert "--core" in remedy and "mtp_num_layers=null" in remedy


def test_what_only_the_newest_refuses_is_a_finding_and_a_note(
    report_of: Callable[..., Report],
) -> None:
    graphs = {"cuda_graph_impl": "local", "cuda_graph_scope": ["attn"]}
    report = report_of({"model": {"num_layers": 8, **graphs}, "ddp": {}})
    assert [d.rule for d in report.findings] == ["bridge.local-graph-scopes"]
    (reason,) = [text for text in told(report) if "accepted" in text]
    assert reason.startswith("with megatron-core 0.16.1, 0.17.1 and 0.18.2 it is accepted")
    assert not report_of({"model": {"num_layers": 8, **graphs}, "ddp": {}}, core="0.18.2").findings


def test_a_knob_that_has_another_value_is_a_note(report_of: Callable[..., Report]) -> None:
    switches = {"use_distributed_optimizer": True, "overlap_grad_reduce": True}
    data = {"model": {"num_layers": 8}, "ddp": {**switches, "overlap_param_gather": True}}
    report = report_of(data)
    assert report.effective["optimizer.overlap_param_gather"] is True
    about = [d for d in told(report).values() if d.knob == "optimizer.overlap_param_gather"]
    assert [d.outcome for d in about] == [Outcome.NOTE]
    assert "with megatron-core 0.16.1 and 0.17.1" in about[0].reason
    assert told(report_of(data, bridge="0.4.2")) == {}


def test_a_version_that_lacks_a_key_is_no_candidate(
    config: Callable[..., str],
) -> None:
    def others(text: str) -> list[str | None]:
        (settings,) = read_sources([config(text)], command="explain")
        return [stack.core for stack in other_stacks(settings)]

    assert others("model: {num_layers: 4}\nddp: {}\n") == [s.core for s in KNOWN[:-1]]
    assert others("model: {num_layers: 4}\nddp: {num_buckets: 4}\n") == ["0.18.2", "0.19.0"]
    assert others("model: {num_layers: 4}\nenv_vars: {A: 1}\n") == ["0.19.0"]
    # A key that is gone shows an older version, but not that the newest is not the run's.
    assert len(others("model: {num_layers: 4}\nddp: {preserve_fp32_weights: true}\n")) == 4


@pytest.mark.parametrize("command", ["explain", "doctor", "plan"])
def test_every_command_shows_the_note(
    command: str, overlapkit: Any, config: Callable[..., str]
) -> None:
    model = {**EXPERTS, "mtp_num_layers": 0, "hidden_size": 64, "num_attention_heads": 8}
    path = config(yaml.safe_dump({"model": model, "ddp": {}, "comm_overlap": EP}))
    options = ["--gpu", "h100", "--world-size", "8"]
    shown = overlapkit(command, path, *options)
    assert "with megatron-core 0.16.1, 0.17.1 and 0.18.2" in shown.out
    known = overlapkit(command, path, *options, "--core", "0.19.0")
    assert "with megatron-core" not in known.out


OVERWRITTEN = """\
model: {fp16: true, params_dtype: float32, num_layers: 4}
ddp: {grad_reduce_in_fp32: false, reuse_grad_buf_for_mxfp8_param_ag: true}
optimizer: {bf16: false}
mixed_precision: bf16_mixed
comm_overlap: {tp_comm_overlap: false}
"""


def refused(result) -> dict[str, Any]:
    decisions = json.loads(result.out)["decisions"]
    return {d["knob"]: d["requested"] for d in decisions if d["outcome"] == "refused"}


def test_a_value_that_a_person_set_and_that_is_overwritten_is_refused(overlapkit, config) -> None:
    result = overlapkit("explain", config(OVERWRITTEN), "--world-size", "8", "--json")
    assert refused(result) == {
        "model.fp16": True,
        "model.params_dtype": "float32",
        "ddp.grad_reduce_in_fp32": False,
        "ddp.reuse_grad_buf_for_mxfp8_param_ag": True,
        "optimizer.bf16": False,
    }


def test_one_that_is_only_spelt_otherwise_is_not(overlapkit, config) -> None:
    text = (
        "model: {params_dtype: torch.bfloat16, bf16: true}\nddp: {}\nmixed_precision: bf16_mixed\n"
    )
    assert refused(overlapkit("explain", config(text), "--world-size", "8", "--json")) == {}


def test_a_recipes_own_value_is_no_persons(overlapkit, bridge_configs: Path) -> None:
    # The recipe sets model.first_last_layers_bf16, and its mixed_precision overwrites it.
    dump = str(bridge_configs / "nemotronh_8b_pretrain_config.yaml")
    arguments = ("--world-size", "64", "--json")
    knob = "model.first_last_layers_bf16"
    assert knob not in refused(overlapkit("explain", dump, *arguments))
    assert knob in refused(overlapkit("explain", dump, f"{knob}=true", *arguments))


BIASED = {**EXPERTS, "expert_model_parallel_size": 1, "tensor_model_parallel_size": 2}
BIASED |= {"sequence_parallel": True}


@pytest.mark.parametrize(
    ("model", "outcome"),
    [
        (BIASED, Outcome.NOTE),
        ({**BIASED, "add_bias_linear": True}, Outcome.NOTE),
        ({**BIASED, "add_bias_linear": True, "expert_tensor_parallel_size": 2}, Outcome.ERROR),
    ],
)
def test_what_rests_on_a_default_that_a_recipe_may_change_is_not_certain(
    report_of: Callable[..., Report], model: dict[str, Any], outcome: Outcome
) -> None:
    (found,) = [
        d
        for d in report_of({"model": model}, core="0.16.1").decisions
        if d.rule == "core.expert-bias-splits"
    ]
    assert found.outcome is outcome
    assert found.certain is (outcome is Outcome.ERROR)
    unset = [k for k in ("add_bias_linear", "expert_tensor_parallel_size") if k not in model]
    assert all(f"model.{key}" in found.reason for key in unset)
    assert ("not certain" in found.reason) is bool(unset)


def test_a_file_with_every_field_has_no_default_to_rest_on(
    report_of: Callable[..., Report],
) -> None:
    model = {**BIASED, "add_bias_linear": True, "expert_tensor_parallel_size": None}
    found = [d for d in report_of(dump(model)).decisions if d.rule == "core.expert-bias-splits"]
    assert [d.outcome for d in found] == [Outcome.ERROR]
