"""How a script is laid out never changes what it does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from overlapkit.config.shell.follow import follow_script
from support.property_tests import examples
from support.shell_layouts import Program
from support.shell_scripts import BASH, Start, starts, starts_by_bash


def started(text: str) -> list[Start]:
    return starts(follow_script(text, "t.sh", {}))


@examples(150, 1500, suppress_health_check=[HealthCheck.too_slow])
@given(contents=st.integers(0, 2**32), layout=st.integers(1, 2**32))
def test_a_layout_changes_nothing(contents: int, layout: int) -> None:
    plain, other = Program(contents, 0).text, Program(contents, layout).text
    assert started(other) == started(plain), other


@examples(50, 500, suppress_health_check=[HealthCheck.too_slow])
@given(contents=st.integers(0, 2**32), layout=st.integers(1, 2**32))
def test_line_ends_of_windows_change_nothing(contents: int, layout: int) -> None:
    text = Program(contents, layout).text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.sh")
        path.write_bytes(text.replace("\n", "\r\n").encode())
        assert started(f"source {path}") == started(text), text


@pytest.mark.skipif(BASH is None, reason="needs bash, to compare with")
@examples(50, 500, suppress_health_check=[HealthCheck.too_slow])
@given(contents=st.integers(0, 2**32), layout=st.integers(0, 2**32))
def test_any_layout_is_bashs(contents: int, layout: int) -> None:
    text = Program(contents, layout).text
    assert started(text) == starts_by_bash(text), text
