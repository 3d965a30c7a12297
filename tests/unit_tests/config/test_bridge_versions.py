"""Files of every Megatron-Bridge are read, wherever a version keeps a key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron.bridge.training.decisions import Outcome
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN, Stack
from overlapkit.config.effective import make_effective
from overlapkit.config.reading import Reading
from overlapkit.config.remarks import remarks
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.schema import section_fields
from overlapkit.config.sources import read_sources
from overlapkit.config.versions import keys_in
from overlapkit.config.yaml_file import read_yaml
from overlapkit.errors import InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import explain

SIZES = {"num_layers": 8, "hidden_size": 256, "num_attention_heads": 8}
LAYOUT = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
CONTAINER = "megatron.bridge.training.config.ConfigContainer"


def dump_of(stack: int, **sections: Any) -> dict[str, Any]:
    """A file with every field that the stack of this index writes, at its default."""
    data: dict[str, Any] = {"_target_": CONTAINER}
    for section in ("ddp", "optimizer", "dist"):
        data[section] = {key: span.default for key, span in keys_in(section, stack).items()}
    data["model"] = {**SIZES, **LAYOUT}
    for section, content in sections.items():
        data[section] = {**data.get(section, {}), **content}
    return data


@pytest.fixture
def read(config: Callable[..., str]) -> Callable[..., Settings]:
    """`read(data, *overrides)`: the settings of a file with this content."""

    def settings(data: dict[str, Any], *overrides: str) -> Settings:
        path = config(yaml.safe_dump(data))
        (result,) = read_sources([path, *overrides], command="explain")
        return result

    return settings


@pytest.mark.parametrize("stack", range(len(KNOWN)))
def test_a_dump_of_every_version_is_read_and_dated(
    stack: int, read: Callable[..., Settings]
) -> None:
    settings = read(dump_of(stack))
    assert KNOWN[stack] in settings.stacks
    _, update = make_effective(settings, 16, AssumedSoftware())
    assert update.data_parallel_size == 4


def test_a_nested_model_section_is_the_models(read: Callable[..., Settings]) -> None:
    nested = dump_of(len(KNOWN) - 1)
    nested["model"] = {
        "_builder_": "megatron.bridge.models.gpt.gpt_builder.GPTModelBuilder",
        "seq_length": 4096,
        "tp_comm_overlap_cfg": None,
        "transformer": {**SIZES, **LAYOUT},
    }
    settings = read(nested)
    run, update = make_effective(settings, 16, AssumedSoftware())
    assert (run.model.tensor_model_parallel_size, run.model.seq_length) == (2, 4096)
    assert update.data_parallel_size == 4
    place = settings.where["model.tensor_model_parallel_size"]
    document = read_yaml(settings.source)
    assert document.place("model", "transformer", "tensor_model_parallel_size") == place
    lines = Path(settings.source).read_text().splitlines()
    assert place.line is not None and place.column is not None
    assert lines[place.line - 1][place.column - 1 :].startswith("tensor_model_parallel_size:")


@pytest.mark.parametrize(
    "key", ["model.transformer.tensor_model_parallel_size", "model.tensor_model_parallel_size"]
)
def test_either_name_of_a_nested_key_overrides_it(key: str, read: Callable[..., Settings]) -> None:
    nested = dump_of(len(KNOWN) - 1)
    nested["model"] = {"transformer": {**SIZES, **LAYOUT}}
    run, _ = make_effective(read(nested, f"{key}=4"), 16, AssumedSoftware())
    assert run.model.tensor_model_parallel_size == 4


def test_a_nested_section_that_is_none_is_refused(config: Callable[..., str]) -> None:
    path = config(yaml.safe_dump({"model": {"transformer": 3}}))
    with pytest.raises(InputError, match=r"run\.yaml:2: model\.transformer must be a section"):
        read_settings(read_yaml(path))


def test_no_key_of_a_dump_is_unknown(read: Callable[..., Settings]) -> None:
    settings = read(dump_of(1, ddp={"fp8_param_gathers": True, "of_a_fork": 1}))
    assert (settings.values["ddp"] or {})["of_a_fork"] == 1


def test_a_typo_in_a_file_by_hand_is_refused(config: Callable[..., str]) -> None:
    path = config("model: {num_layers: 2}\nddp: {overlap_grad_reduc: true}\n")
    with pytest.raises(InputError, match=r"did you mean ddp\.overlap_grad_reduce"):
        read_settings(read_yaml(path))


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ({"_target_": "m.CudaGraphScope", "_args_": [4], "_call_": True}, "moe"),
        ({"_target_": "m.CudaGraphModule", "_args_": [4], "_call_": True}, "moe_router"),
        ({"_target_": "m.CudaGraphModule", "_args_": [4], "_name_": "attn"}, "attn"),
        ({"_target_": "m.CudaGraphModule", "_args_": [4], "_name_": "mlp", "_call_": False}, "mlp"),
        ({"_target_": "m.CudaGraphScope", "_args_": [4], "_call_": False}, "moe"),
        ({"_target_": "m.CudaGraphModule.moe_router", "_call_": False}, "moe_router"),
        ("attn", "attn"),
    ],
)
def test_a_graph_scope_goes_by_its_name_and_class(
    scope: dict[str, Any], name: str, read: Callable[..., Settings]
) -> None:
    settings = read(dump_of(2, model={"cuda_graph_modules": [scope]}))
    assert (settings.values["model"] or {})["cuda_graph_modules"] == [name]


def test_a_default_is_that_of_the_version(read: Callable[..., Settings]) -> None:
    old, new = read(dump_of(0)), read(dump_of(len(KNOWN) - 1))
    runs = [make_effective(s, 16, AssumedSoftware())[0] for s in (old, new)]
    assert [run.model.cuda_graph_scope for run in runs] == ["full", None]
    assert not hasattr(runs[0].ddp, "num_buckets") and runs[1].ddp.num_buckets is None


def test_a_version_that_is_given_wins(read: Callable[..., Settings]) -> None:
    settings = Reading(core="0.19.0").dated(read(dump_of(0)))
    assert settings.stack == Stack("0.19.0", "0.6.0") and settings.stack_given
    with pytest.raises(InputError, match=r"--core new: 'new' is not a version"):
        Reading(core="new").dated(settings)


@pytest.mark.parametrize(("stack", "both"), [(1, False), (2, True)])
def test_the_parameter_gather_is_kept_in_step_since_bridge_0_5_1(
    stack: int, both: bool, read: Callable[..., Settings]
) -> None:
    switches = {"use_distributed_optimizer": True, "overlap_grad_reduce": True}
    settings = read(dump_of(stack, ddp={**switches, "overlap_param_gather": True}))
    run, update = make_effective(settings, 16, AssumedSoftware())
    assert run.optimizer.overlap_param_gather is both
    assert ("dp.param-gather-sync" in {d.rule for d in update.decisions}) is both


USERBUFFERS = {"qkv_fprop": {"method": "ring_exchange", "num_sm": 1, "fp8_buf": [False]}}


def after_setup(stack: int, replicas: int) -> dict[str, Any]:
    """A file that was written after setup made DP overlap and TP overlap effective."""
    overlap = {"overlap_grad_reduce": True, "overlap_param_gather": True}
    comm = dict.fromkeys(section_fields("comm_overlap"))
    comm |= {"tp_comm_overlap": True, "tp_comm_overlap_cfg": USERBUFFERS}
    comm |= {"data_parallel_size": replicas, "tp_comm_bootstrap_backend": "nccl"}
    return dump_of(
        stack,
        model={
            "sequence_parallel": True,
            "tp_comm_overlap": True,
            "tp_comm_overlap_cfg": USERBUFFERS,
        },
        ddp={**overlap, "use_distributed_optimizer": True, "bucket_size": 134217728},
        optimizer={"overlap_param_gather": True, "use_distributed_optimizer": True},
        comm_overlap=comm,
    )


@pytest.mark.parametrize("stack", range(len(KNOWN)))
def test_what_setup_filled_in_is_nobodys_request(stack: int, read: Callable[..., Settings]) -> None:
    settings = read(after_setup(stack, replicas=4))
    assert settings.after_setup == 4
    assert "data-parallel size of 4" in remarks(settings)[0]
    # On a single replica everything is off again: nothing that was requested is lost.
    for world_size, on in ((16, True), (4, False)):
        report = explain(settings, world_size, assume("h100", None, None))
        assert report.effective["ddp.overlap_grad_reduce"] is on
        assert report.effective["model.tp_comm_overlap_cfg"] == USERBUFFERS
        about = [d for d in report.decisions if d.knob.startswith(("ddp.", "optimizer.", "model."))]
        assert not [d for d in about if d.is_finding]
        (decision,) = [d for d in about if d.knob.startswith("model.tp_comm_overlap_cfg")]
        assert decision.outcome is Outcome.DEFAULT and decision.requested is None


def test_before_setup_a_knob_that_is_set_is_a_request(read: Callable[..., Settings]) -> None:
    before = after_setup(2, replicas=4)
    before["comm_overlap"]["data_parallel_size"] = None
    settings = read(before)
    assert settings.after_setup is None
    report = explain(settings, 4, assume("h100", None, None))
    assert "ddp.overlap_grad_reduce" in {d.knob for d in report.findings}


def test_an_override_of_what_setup_filled_in_is_a_request(read: Callable[..., Settings]) -> None:
    settings = read(after_setup(2, replicas=4), "ddp.overlap_grad_reduce=true")
    report = explain(settings, 4, assume("h100", None, None))
    assert "ddp.overlap_grad_reduce" in {d.knob for d in report.findings}
