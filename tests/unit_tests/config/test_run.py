"""From a file and overrides to the run that they describe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron.bridge.training.tp_overlap_presets import PRESETS
from megatron.bridge.training.versions import KNOWN, NEWEST, Stack
from overlapkit.config.overrides import parse_override
from overlapkit.config.places import Place
from overlapkit.config.run import Run, Settings, build_run, read_settings
from overlapkit.config.schema import section_fields
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError

PRESET = "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192"


def settings(data: dict[str, Any], *overrides: str) -> Settings:
    return read_settings(
        Document("run.yaml", data), [parse_override(text, data) for text in overrides]
    )


def run(data: dict[str, Any], *overrides: str) -> Run:
    return build_run(settings(data, *overrides))


def test_what_a_file_lacks_is_megatron_cores_default() -> None:
    built = run({"model": {"num_layers": 4}})
    assert built.model.num_layers == 4
    for section, config in (("ddp", built.ddp), ("optimizer", built.optimizer)):
        for key, known in section_fields(section, NEWEST).items():
            assert getattr(config, key) == known.default
    assert built.comm_overlap is None and built.mixed_precision is None


def test_null_is_not_set_for_a_plain_number_and_none_where_that_is_a_value() -> None:
    built = run(
        {
            "model": {"tensor_model_parallel_size": None, "sequence_parallel": None},
            "ddp": {"bucket_size": None},
        }
    )
    assert built.model.tensor_model_parallel_size == 1
    assert built.model.sequence_parallel is False
    assert built.ddp.bucket_size is None


def test_two_runs_of_the_same_settings_share_nothing() -> None:
    read = settings({"model": {}, "comm_overlap": {"tp_comm_overlap": True}, "mixed_precision": {}})
    first, second = build_run(read), build_run(read)
    first.model.num_layers = 9
    assert first.comm_overlap is not None and second.comm_overlap is not None
    first.comm_overlap.bucket_size = 9
    assert second.model.num_layers == 0 and second.comm_overlap.bucket_size is None


class TestWhatIsAskedFor:
    def test_everything_in_a_hand_written_file(self) -> None:
        asked = settings({"ddp": {"overlap_grad_reduce": False}}).asked
        assert "ddp.overlap_grad_reduce" in asked

    def test_what_is_no_default_in_a_file_that_bridge_wrote(self) -> None:
        data = {
            "_target_": "megatron.bridge.training.config.ConfigContainer",
            "ddp": {"overlap_grad_reduce": False, "bucket_size": 5},
        }
        assert settings(data).asked == {"ddp.bucket_size"}

    @pytest.mark.parametrize(
        "override", ["ddp.overlap_grad_reduce=false", "ddp={overlap_grad_reduce: false}"]
    )
    def test_every_override(self, override: str) -> None:
        data = {"_target_": "x", "ddp": {"overlap_grad_reduce": False}}
        assert "ddp.overlap_grad_reduce" not in settings(data).asked
        assert "ddp.overlap_grad_reduce" in settings(data, override).asked


class TestTargets:
    def test_a_name_is_read_as_a_name(self) -> None:
        built = run({"model": {"params_dtype": {"_target_": "torch.bfloat16", "_call_": False}}})
        assert built.model.params_dtype == "torch.bfloat16"

    def test_a_cuda_graph_scope_is_read_by_its_number(self) -> None:
        scope = {"_target_": "a.b.CudaGraphScope", "_call_": True, "_args_": [2]}
        built = run({"model": {"cuda_graph_scope": [scope]}})
        assert built.model.cuda_graph_scope == ["attn"]

    def test_a_preset(self) -> None:
        target = {"_target_": f"megatron.bridge.training.comm_overlap.{PRESET}", "_call_": False}
        for value in (PRESET, target):
            built = run({"comm_overlap": {"tp_comm_overlap": True, "tp_comm_overlap_cfg": value}})
            assert built.comm_overlap is not None
            assert built.comm_overlap.tp_comm_overlap_cfg == PRESETS[PRESET]

    def test_an_override_may_hold_one(self) -> None:
        override = f"comm_overlap.tp_comm_overlap_cfg={{_target_: x.{PRESET}, _call_: false}}"
        built = run({"comm_overlap": {"tp_comm_overlap": True}}, override)
        assert built.comm_overlap is not None
        assert built.comm_overlap.tp_comm_overlap_cfg == PRESETS[PRESET]


class TestMixedPrecision:
    def test_a_name(self) -> None:
        built = run({"model": {}, "mixed_precision": "fp16_mixed"})
        assert built.mixed_precision is not None and built.mixed_precision.fp16

    def test_a_name_and_a_key_on_top(self) -> None:
        data = {"model": {}, "mixed_precision": "bf16_with_mxfp8_mixed"}
        built = run(data, "mixed_precision.fp8_param_gather=false")
        assert built.mixed_precision is not None
        assert built.mixed_precision.fp8_recipe == "mxfp8"
        assert built.mixed_precision.fp8_param_gather is False

    def test_another_name_replaces_all(self) -> None:
        data = {"model": {}, "mixed_precision": {"fp16": True}}
        built = run(data, "mixed_precision=bf16_mixed")
        assert built.mixed_precision is not None
        assert built.mixed_precision.bf16 and not built.mixed_precision.fp16

    def test_null(self) -> None:
        data = {"model": {}, "mixed_precision": "bf16_mixed"}
        assert run(data, "mixed_precision=null").mixed_precision is None


def test_a_tokenizers_vocabulary_is_the_models_where_it_has_none() -> None:
    data = {"model": {}, "tokenizer": {"vocab_size": 1000}}
    assert run(data).model.vocab_size == 1000
    assert run(data, "model.vocab_size=512").model.vocab_size == 512


def test_a_file_of_other_things_is_no_run() -> None:
    with pytest.raises(InputError, match="run configuration"):
        settings({"services": {"web": {}}})


def test_the_place_of_an_error_is_what_set_the_value() -> None:
    places = {("model", "num_layers"): Place("run.yaml", 2, 3)}
    document = Document("run.yaml", {"model": {"num_layers": -1}}, places)
    with pytest.raises(InputError, match=r"^run\.yaml:2: "):
        read_settings(document)
    override = parse_override("model={num_layers: -2}", document.data)
    with pytest.raises(InputError, match=r"^model=\{num_layers: -2\}: "):
        read_settings(document, [override])


def test_flat_names_a_null_section_by_its_name() -> None:
    read = settings({"model": {"num_layers": 4}, "comm_overlap": None})
    assert read.flat() == {"model.num_layers": 4, "comm_overlap": None}


@pytest.mark.parametrize(("stack", "in_fp4"), list(zip(KNOWN, (False, *[True] * 4), strict=True)))
def test_a_recipe_is_that_of_the_runs_version(stack: Stack, in_fp4: bool) -> None:
    of_version = replace(
        settings({"model": {}, "mixed_precision": "bf16_with_nvfp4_mixed"}),
        stacks=(stack,),
        stack_given=True,
    )
    precision = build_run(of_version).mixed_precision
    assert precision is not None
    assert (precision.fp4, precision.fp4_param_gather) == ("e2m1", in_fp4)
