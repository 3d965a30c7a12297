"""YAML as data: bounded, with the lines of its keys."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from overlapkit.config.yaml_file import MAX_DEPTH, MAX_NODES, YamlProblem, load_yaml, read_yaml
from overlapkit.errors import InputError


def test_values_and_the_places_of_the_first_three_levels() -> None:
    data, marks = load_yaml("# top\nmodel:\n  num_layers: 4\n  inner:\n    deep: 1\nddp: {a: b}\n")
    assert data == {"model": {"num_layers": 4, "inner": {"deep": 1}}, "ddp": {"a": "b"}}
    assert marks == {
        ("model",): (2, 1),
        ("model", "num_layers"): (3, 3),
        ("model", "inner"): (4, 3),
        ("model", "inner", "deep"): (5, 5),
        ("ddp",): (6, 1),
        ("ddp", "a"): (6, 7),
    }


def test_merge_keys_and_aliases_are_followed() -> None:
    data, _ = load_yaml("base: &b {x: 1, y: 2}\nmodel:\n  <<: *b\n  y: 3\nddp: {again: *b}\n")
    assert data["model"] == {"x": 1, "y": 3}
    assert data["ddp"] == {"again": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775807", 2**63 - 1),
        ("1_000", 1000),
        ("0x10", 16),
        ("1.5", 1.5),
        ("1e9", "1e9"),
        ("yes", True),
        ("~", None),
        ("", None),
        ("'yes'", "yes"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_are_those_of_yaml_1_1(text: str, value: object) -> None:
    assert load_yaml(text)[0] == value


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "0x1" + "0" * 16])
def test_a_number_of_more_than_64_bits(text: str) -> None:
    with pytest.raises(YamlProblem, match="64 bits"):
        load_yaml(text)


def test_the_deepest_and_the_largest_that_is_read() -> None:
    deep = MAX_DEPTH - 1
    load_yaml("[" * deep + "]" * deep)
    with pytest.raises(YamlProblem, match="deep"):
        load_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    wide = "[" + "x," * (MAX_NODES - 10) + "]"
    assert len(load_yaml(wide)[0]) == MAX_NODES - 10
    with pytest.raises(YamlProblem, match="more values"):
        load_yaml("[" + "x," * MAX_NODES + "]")


def test_aliases_cannot_nest_deeper_than_the_text_may() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 2 * MAX_DEPTH)]
    with pytest.raises(YamlProblem, match="aliases nest too deeply") as problem:
        load_yaml("\n".join(lines))
    assert problem.value.line


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_a_million_openings_are_refused_at_once(opening: str) -> None:
    start = time.process_time()
    with pytest.raises(YamlProblem) as problem:
        load_yaml(opening * 1_000_000)
    # Whether libyaml or this reader refuses it depends on libyaml's version: so do the words.
    assert problem.value.line == 1
    # Well under a second; building it, or reading it in quadratic time, would take minutes.
    assert time.process_time() - start < 20


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel:\r\n  num_layers: 4\r\n")
    document = read_yaml(path)
    assert document.data == {"model": {"num_layers": 4}}
    assert document.where("model", "num_layers") == f"{path}:2"
    assert document.where("nothing") == str(path)


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\n")
    assert read_yaml(path).data == {}


def test_a_problem_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {}\nmodel: {}\n")
    with pytest.raises(InputError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path}:2: the key 'model' is given twice"
