"""Hydra-style overrides."""

from __future__ import annotations

from typing import Any

import pytest

from overlapkit.config.overrides import apply_overrides, is_override, parse_override
from overlapkit.errors import InputError

FILE = {"model": {"num_layers": 4, "mine": {"a": {"b": 1}}}, "comm_overlap": None, "own": {"x": 1}}


def applied(*texts: str, data: dict[str, Any] = FILE) -> dict[str, Any]:
    return apply_overrides(data, [parse_override(text, data) for text in texts])


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("model.num_layers=4", True),
        ("comm_overlap=null", True),
        ("+model.num_layers=4", True),
        ("++model.num_layers=4", True),
        ("~model.num_layers", True),
        ("model.name=a b", True),
        ("run.yaml", False),
        ("a b=c.yaml", False),
        ("./run.yaml", False),
        ("", False),
    ],
)
def test_what_is_an_override(argument: str, expected: bool) -> None:
    assert is_override(argument) is expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("model.num_layers=8", 8),
        ("+model.num_layers=8", 8),
        ("++model.num_layers=8", 8),
        ("model.num_layers=null", None),
        ("model.num_layers=true", True),
        ("model.num_layers=1.5", 1.5),
        ("model.num_layers=[1, 2]", [1, 2]),
        ("model.num_layers={a: 1}", {"a": 1}),
        ("model.num_layers='8'", "8"),
        ("model.num_layers=a=b", "a=b"),
    ],
)
def test_values_are_yaml(text: str, value: Any) -> None:
    assert applied(text)["model"]["num_layers"] == value


def test_what_is_overridden_stays_as_it_is() -> None:
    before = repr(FILE)
    result = applied("model.mine.a.b=2", "own.x=3", "comm_overlap.tp_comm_overlap=true")
    assert result["model"]["mine"]["a"]["b"] == 2 and result["own"]["x"] == 3
    assert result["comm_overlap"] == {"tp_comm_overlap": True}
    assert repr(FILE) == before


def test_a_whole_section() -> None:
    assert applied("model=null")["model"] is None
    assert applied("comm_overlap={tp_comm_overlap: true}")["comm_overlap"] == {
        "tp_comm_overlap": True
    }


def test_a_section_by_name_keeps_its_name_under_further_keys() -> None:
    data = {"mixed_precision": "bf16_mixed"}
    result = applied("mixed_precision.grad_reduce_in_fp32=false", data=data)
    assert "bf16_mixed" in result["mixed_precision"].values()
    assert result["mixed_precision"]["grad_reduce_in_fp32"] is False


def test_later_ones_win() -> None:
    assert applied("model.num_layers=1", "model.num_layers=2")["model"]["num_layers"] == 2
    assert applied("model=null", "model.num_layers=2")["model"] == {"num_layers": 2}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modle.num_layers=1", "unknown section 'modle'; did you mean model.num_layers?"),
        ("nonsense=1", "unknown section 'nonsense'; known are checkpoint, comm_overlap"),
        ("num_layers=1", "did you mean model.num_layers?"),
        ("bucket_size=1", "did you mean comm_overlap.bucket_size?"),
        ("model.num_layer=1", "unknown key; did you mean model.num_layers?"),
        ("model.bucket_size=1", "did you mean comm_overlap.bucket_size?"),
        ("ddp.sequence_parallel=true", "did you mean model.sequence_parallel?"),
        ("model.mine.a.b.c=1", "model.mine.a.b is 1 in the file, not a mapping"),
        ("model.num_layers.x=1", "model.num_layers is 4 in the file"),
    ],
)
def test_what_was_probably_meant(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        applied(text)
    assert told in str(error.value)
    assert str(error.value).startswith(text.partition("=")[0])


def test_keys_of_the_file_are_known() -> None:
    assert applied("model.mine=1")["model"]["mine"] == 1
    with pytest.raises(InputError):
        applied("model.mine=1", data={"model": {}})
