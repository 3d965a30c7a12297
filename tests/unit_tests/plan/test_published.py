"""The estimate beside published throughput: the benchmark's goals are kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "plan_vs_published.py"


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_vs_published", BENCHMARK)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_errors_stay_within_the_goals(benchmark_module: ModuleType) -> None:
    rows = json.loads(benchmark_module.ROWS.read_text())["rows"]
    errors = [abs(benchmark_module.error(benchmark_module.read_row(row))) for row in rows]
    assert sum(errors) / len(errors) <= 0.10
    assert max(errors) <= 0.25


def test_model_flops_are_counted_as_published(benchmark_module: ModuleType) -> None:
    """Published tokens/s and model TFLOP/s give FLOPs per token, to the published digits."""
    off = []
    for raw in json.loads(benchmark_module.ROWS.read_text())["rows"]:
        row = benchmark_module.read_row(raw)
        counted = row.work.model_flops.value / row.work.layout.step_tokens.value
        off.append(abs(counted * row.tokens_per_second / (row.model_tflops * 1e12) - 1))
    # One row of 15 has 2 % less than the others of its model.
    assert sorted(off)[-2] < 0.01
    assert max(off) < 0.03
