"""Which keys a section may hold, of which kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.near_names import nearest
from overlapkit.config.keys import check_unknown_key
from overlapkit.config.schema import (
    OVERLAP_KNOBS,
    check_kind,
    known_keys,
    section_fields,
    sections,
)
from overlapkit.errors import InputError
from overlapkit.explain.report import EFFECTIVE_KNOBS

PLACE = "run.yaml:7"


def test_every_effective_knob_is_a_typed_key_of_its_section() -> None:
    for dotted in EFFECTIVE_KNOBS:
        section, _, key = dotted.partition(".")
        assert key in section_fields(section), dotted


def test_our_own_sections_are_those_of_their_classes() -> None:
    for section, cls in (
        ("comm_overlap", CommOverlapConfig),
        ("mixed_precision", MixedPrecisionConfig),
    ):
        assert set(section_fields(section)) == {f.name for f in dataclasses.fields(cls)}


def test_every_overlap_knob_is_known_somewhere() -> None:
    for knob in OVERLAP_KNOBS:
        assert any(knob in section_fields(section) for section in sections()), knob


def test_bridges_sections_are_known() -> None:
    assert {"model", "ddp", "optimizer", "comm_overlap", "mixed_precision", "train"} <= sections()
    assert "log_interval" in known_keys("logger")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "tensor_model_parallel_size", 4),
        ("model", "tensor_model_parallel_size", None),
        ("model", "virtual_pipeline_model_parallel_size", None),
        ("model", "rotary_base", [10_000, 1_000_000]),
        ("model", "no_such_key", object),
        ("model", "recompute_modules", ["core_attn"]),
        ("model", "recompute_modules", []),
        ("ddp", "overlap_grad_reduce", False),
        ("mixed_precision", "fp8", "e4m3"),
        ("mixed_precision", "fp8", None),
        ("mixed_precision", "initial_loss_scale", 65536.0),
        ("mixed_precision", "loss_scale_window", 1000),
        ("comm_overlap", "tp_comm_overlap_cfg", {"a": 1}),
        ("optimizer", "lr", 1),
        ("somewhere", "else", object),
    ],
)
def test_kinds_that_fit(section: str, key: str, value: Any) -> None:
    assert check_kind(section, key, value, PLACE) is value


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("model", "tensor_model_parallel_size", "4", "must be a whole number, not '4'"),
        ("model", "tensor_model_parallel_size", True, "must be a whole number, not True"),
        ("model", "virtual_pipeline_model_parallel_size", 2.0, "a whole number or null, not 2.0"),
        ("model", "recompute_modules", "moe", "a list of names or null, not 'moe'"),
        ("model", "recompute_modules", [1], "a list of names or null, not [1]"),
        ("ddp", "overlap_grad_reduce", 1, "must be true or false, not 1"),
        ("ddp", "bucket_size", "auto", "must be a whole number or null, not 'auto'"),
        ("mixed_precision", "fp8", 8, "must be a string or null, not 8"),
        ("mixed_precision", "bf16", "yes", "must be true or false, not 'yes'"),
        ("mixed_precision", "loss_scale", "big", "must be a number or null, not 'big'"),
        ("comm_overlap", "overlap_p2p_comm", "on", "must be true or false or null, not 'on'"),
    ],
)
def test_kinds_that_do_not(section: str, key: str, value: Any, told: str) -> None:
    with pytest.raises(InputError) as error:
        check_kind(section, key, value, PLACE)
    assert str(error.value) == f"{PLACE}: {section}.{key} {told}" or told in str(error.value)
    assert str(error.value).startswith(f"{PLACE}: {section}.{key}")


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ("model", "overlap_grad_reduce", "comm_overlap.overlap_grad_reduce"),
        ("train", "tensor_model_parallel_size", "model.tensor_model_parallel_size"),
        ("model", "tensor_model_parallel_sise", "model.tensor_model_parallel_size"),
        ("ddp", "use_distributed_optimiser", "ddp.use_distributed_optimizer"),
        ("comm_overlap", "tp_com_overlap", "comm_overlap.tp_comm_overlap"),
        ("comm_overlap", "micro_batch_size", "train.micro_batch_size"),
    ],
)
def test_a_lost_knob_is_named(section: str, key: str, meant: str) -> None:
    with pytest.raises(InputError, match=PLACE) as error:
        check_unknown_key(section, key, PLACE)
    assert f"did you mean {meant}?" in str(error.value)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("model", "a_new_feature"),
        ("model", "sequence_length"),
        ("logger", "overlap_grad_reduce"),
        ("dataset", "micro_batch_size"),
    ],
)
def test_other_unknown_keys_are_fine(section: str, key: str) -> None:
    check_unknown_key(section, key, PLACE)


def test_nearest() -> None:
    assert nearest("h10", ["h100", "b200"]) == "h100"
    assert nearest("xyz", ["h100", "b200"]) is None
