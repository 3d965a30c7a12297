"""Makes `tests/support` importable as `support`, and property tests the same in every run."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A run that fails must fail again: with SEEDED set other examples are looked for. No deadline,
# since machines are shared and no test asserts a time.
settings.register_profile("repeatable", derandomize="SEEDED" not in os.environ, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scenarios of the lab beyond dp, pp and tp: a few minutes more, on request."""
    if "WHOLE_LAB" in os.environ:
        return
    skip = pytest.mark.skip(reason="trains for minutes: WHOLE_LAB=1 runs it")
    for item in items:
        if item.get_closest_marker("whole_lab"):
            item.add_marker(skip)
