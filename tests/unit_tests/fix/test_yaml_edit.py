"""Keys set and removed in a YAML text, with everything else byte for byte as it was."""

from __future__ import annotations

import copy
import difflib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.training.edits import REMOVED
from overlapkit.config.yaml_file import load_yaml
from overlapkit.fix.splice import CannotEdit
from overlapkit.fix.yaml_edit import edit_yaml, same
from support.property_tests import examples

FILE = """\
# The run of Tuesday.
ddp:
  overlap: true   # keep
  name: 'x'
  big:  # a list
  - a
  - b
  # the end of ddp

model: {tp: 2, pp: 1}
other:
    wide: yes
nothing: null  # why
empty: {}
"""


def changed(text: str, path: str, value: Any) -> list[str]:
    """The lines that an edit removes and adds."""
    after = edit_yaml(text, tuple(path.split(".")), value)
    lines = difflib.unified_diff(text.splitlines(), after.splitlines(), n=0)
    changes = [f"{line[0]} {line[1:]}" for line in lines if line[0] in "+-"]
    return changes[2:]


@pytest.mark.parametrize(
    ("path", "value", "lines"),
    [
        ("ddp.overlap", False, ["-   overlap: true   # keep", "+   overlap: false   # keep"]),
        ("ddp.name", "y", ["-   name: 'x'", "+   name: 'y'"]),
        ("ddp.name", "it's", ["-   name: 'x'", '+   name: "it\'s"']),
        ("ddp.big", [1], ["-   big:  # a list", "-   - a", "-   - b", "+   big: [1]  # a list"]),
        ("ddp.big", REMOVED, ["-   big:  # a list", "-   - a", "-   - b"]),
        ("ddp.new", 3, ["+   new: 3"]),
        ("ddp.new.inner", "a", ["+   new:", "+     inner: a"]),
        ("model.tp", 4, ["- model: {tp: 2, pp: 1}", "+ model: {tp: 4, pp: 1}"]),
        ("model.pp", REMOVED, ["- model: {tp: 2, pp: 1}", "+ model: {tp: 2}"]),
        ("model.tp", REMOVED, ["- model: {tp: 2, pp: 1}", "+ model: {pp: 1}"]),
        ("model.vp", "a b", ["- model: {tp: 2, pp: 1}", '+ model: {tp: 2, pp: 1, vp: "a b"}']),
        ("other.wide", False, ["-     wide: yes", "+     wide: no"]),
        ("other.wide", REMOVED, ["- other:", "-     wide: yes", "+ other: {}"]),
        ("nothing.a", 1, ["- nothing: null  # why", "+ nothing:   # why", "+   a: 1"]),
        ("empty.a", None, ["- empty: {}", "+ empty: {a: null}"]),
        ("added.a", "1", ["+ added:", '+   a: "1"']),
        ("nothing.b", REMOVED, []),
        ("ddp.overlap", True, []),
    ],
)
def test_an_edit_changes_its_lines(path: str, value: Any, lines: list[str]) -> None:
    assert changed(FILE, path, value) == lines


SHARED = """\
base: &base
  overlap: true
  bucket: &size 5
ddp:
  <<: *base
  zero: 1
optimizer: *base
also: *size
"""


@pytest.mark.parametrize(
    ("path", "value", "lines"),
    [
        # A key of a merge is set beside it.
        ("ddp.overlap", False, ["+   overlap: false"]),
        (
            "optimizer.overlap",
            False,
            ["- optimizer: *base", "+ optimizer: {<<: *base, overlap: false}"],
        ),
        ("also", 6, ["- also: *size", "+ also: 6"]),
    ],
)
def test_what_comes_from_an_alias_is_set_in_place(path: str, value: Any, lines: list[str]) -> None:
    assert changed(SHARED, path, value) == lines


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("base.overlap", False, "&base"),
        ("base.bucket", 6, "&size"),
        ("base.new", 6, "&base"),
        ("ddp.overlap", REMOVED, "<<"),
        ("also.deeper", 1, "no section"),
    ],
)
def test_what_other_keys_use_is_not_changed(path: str, value: Any, why: str) -> None:
    with pytest.raises(CannotEdit, match=why):
        edit_yaml(SHARED, tuple(path.split(".")), value)


@pytest.mark.parametrize("text", ["- a\n", "5\n", "a: [\n"])
def test_a_file_without_sections(text: str) -> None:
    with pytest.raises(CannotEdit):
        edit_yaml(text, ("a", "b"), 1)


def test_line_breaks_and_the_end_of_the_file_stay() -> None:
    crlf = FILE.replace("\n", "\r\n")
    for path, value in [("ddp.new", 1), ("ddp.big", [1]), ("n.x", 1), ("nothing.a", 1)]:
        after = edit_yaml(crlf, tuple(path.split(".")), value)
        assert after.count("\n") == after.count("\r\n")
    assert edit_yaml("a: 1", ("b",), 2) == "a: 1\nb: 2"
    assert edit_yaml("a: 1\n...\n", ("b",), 2) == "a: 1\nb: 2\n...\n"


@pytest.mark.parametrize(
    "text", ["a: |\n  one\n  two\nb: 1\n", "a: >-\n  one\n\nb: 1\n", "a: one\n  two\nb: 1\n"]
)
def test_a_text_of_several_lines_is_replaced(text: str) -> None:
    assert load_yaml(edit_yaml(text, ("a",), "x"))[0] == {"a": "x", "b": 1}
    assert load_yaml(edit_yaml(text, ("a",), REMOVED))[0] == {"b": 1}


def test_true_is_not_one() -> None:
    assert not same({"a": True}, {"a": 1})
    assert not same([1], [1.0])
    assert same({"a": [float("nan")]}, {"a": [float("nan")]})


names = st.sampled_from(["ddp", "model", "a", "b", "yes", "x y", "Ω"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["C"]), max_size=12)
    | st.sampled_from(["yes", "null", "1", "- a", "a: b", "# c", "*a", "multi\nline\n", "'", '"'])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
sections = st.dictionaries(names, st.dictionaries(names, values, max_size=5) | scalars, max_size=4)


def with_value(data: Any, path: tuple[str, ...], value: Any) -> Any:
    result = copy.deepcopy(data)
    inner = result
    for name in path[:-1]:
        if inner.get(name) is None:
            inner[name] = {}
        inner = inner[name]
    if value is REMOVED:
        inner.pop(path[-1], None)
    else:
        inner[path[-1]] = value
    return result


@examples(300, 3000)
@given(
    sections,
    st.lists(names, min_size=1, max_size=3),
    scalars | st.lists(scalars, max_size=2) | st.just(REMOVED),
    st.sampled_from([None, False, True]),
    st.sampled_from(["", "# first\n"]),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(2, 4),
)
def test_the_data_is_as_intended_and_the_rest_stays(
    data: Any, path: list[str], value: Any, style: bool | None, head: str, end: str, indent: int
) -> None:
    dumped = yaml.safe_dump(
        data, default_flow_style=style, allow_unicode=True, indent=indent, sort_keys=False
    )
    text = (head + dumped).replace("\n", end)
    before, _ = load_yaml(text)
    if not isinstance(before, dict):
        return
    try:
        after = edit_yaml(text, tuple(path), value)
    except CannotEdit:
        # A value in the place of a section, or a file without keys.
        inner: Any = before
        for name in path[:-1]:
            inner = (inner or {}).get(name) if isinstance(inner, dict | None) else 0
        assert not isinstance(inner, dict | None) or not before
        return
    wanted = before
    if value is not REMOVED or _has(before, path):
        wanted = with_value(before, tuple(path), value)
    assert same(load_yaml(after)[0], wanted)
    assert after.startswith(head.replace("\n", end)) or not head


def _has(data: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(data, dict) or name not in data:
            return False
        data = data[name]
    return True
