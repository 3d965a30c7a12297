"""What every run of the tests costs before its first test."""

from __future__ import annotations

import pytest

from support.late import IMPORTED


def test_collecting_the_tests_imports_no_torch(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.stash[IMPORTED] == []
