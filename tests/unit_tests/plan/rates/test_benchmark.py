"""The estimate with measured rates beside steps of the machine that they were measured on."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from overlapkit.plan.estimate.sureness import MEASURED, MEASURED_ON

BENCHMARKS = Path(__file__).resolve().parents[4] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("plan_with_rates")


@pytest.fixture(scope="module")
def compared(benchmark: Any) -> Any:
    rows = benchmark.read_rows(benchmark.ROWS)[0]
    return benchmark.compare([r for r in rows if r.published.origin == benchmark.ORIGIN])


def test_errors_stay_within_the_goal(benchmark: Any, compared: Any) -> None:
    """Each layout estimated with a share that it was not fitted to."""
    errors = benchmark.columns_of(compared)
    assert errors["left out"]["mean"] <= 0.08
    assert errors["left out"]["mean"] < errors["SimuMax"]["mean"]


def test_the_steps_rest_on_the_measurements(compared: Any) -> None:
    assert all(one.resting > 0.9 for one in compared)


def test_the_range_of_such_an_estimate_is_that_of_these_layouts(
    benchmark: Any, compared: Any
) -> None:
    layouts = defaultdict(list)
    for one in compared:
        layouts[one.row.measured_layout].append(1 / (1 + one.left_out))
    shares = [median(each) for each in layouts.values()]
    assert benchmark.GPU == MEASURED_ON
    assert len(shares) == MEASURED.layouts
    # The estimate's own laws move a little without a new range.
    assert min(shares) == pytest.approx(MEASURED.lower, abs=0.03)
    assert max(shares) == pytest.approx(MEASURED.upper, abs=0.03)
