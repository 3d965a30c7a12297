"""`overlapkit lab calibrate` measures this machine."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from overlapkit.plan.rates.document import RatesDocument
from overlapkit.plan.rates.reading import read_rates

SMALL = """
model:
  num_layers: 2
  hidden_size: 256
  ffn_hidden_size: 512
  num_attention_heads: 4
  vocab_size: 512
  seq_length: 128
  tensor_model_parallel_size: 1
  num_moe_experts: 4
  moe_grouped_gemm: true
  expert_model_parallel_size: 2
train: {micro_batch_size: 1, global_batch_size: 4}
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[RatesDocument, str]:
    """A run's shapes, measured by two ranks on this machine's processors; and what was printed."""
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "run.yaml").write_text(SMALL, encoding="utf-8")
    out = folder / "rates.json"
    command = [
        sys.executable, "-m", "overlapkit.cli", "lab", "calibrate", str(folder / "run.yaml"),
        "--world-size", "2", "--ranks", "2", "--budget", "2m", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return read_rates(str(out)), done.stdout


def test_every_shape_of_the_run_is_measured(measured: tuple[RatesDocument, str]) -> None:
    rates, said = measured
    assert (rates.gpu, rates.measured) == ("cpu", "alone")
    sizes = {(row.m, row.n, row.k, row.batch, row.which) for row in rates.gemms}
    assert (128, 512, 256, 1, "fprop") in sizes  # the output layer
    assert any(row.batch == 2 for row in rates.gemms)
    assert {row.phase for row in rates.attention} == {"forward", "backward"}
    for row in (*rates.gemms, *rates.attention):
        assert row.seconds is not None
        assert 0 < row.seconds < 60
    assert f"matrix products: {len(rates.gemms)} shapes" in said
    assert "plan takes only a GPU's" in said


def test_collectives_of_two_ranks_are_measured(measured: tuple[RatesDocument, str]) -> None:
    rates, _ = measured
    kinds: dict[str, list[Any]] = {}
    for row in rates.collectives:
        assert (row.link, row.ranks) == ("node", 2)
        kinds.setdefault(row.kind, []).append(row.seconds)
    assert kinds.keys() == {"all-gather", "reduce-scatter", "all-reduce", "all-to-all"}
    assert all(seconds > 0 for each in kinds.values() for seconds in each)


def test_larger_products_take_longer(measured: tuple[RatesDocument, str]) -> None:
    """The times are of the work that a row states: none is of nothing."""
    rates, _ = measured
    # The shortest of equal work: other processes only add time.
    done: dict[int, float] = {}
    for row in rates.gemms:
        assert row.seconds is not None
        work = row.m * row.n * row.k * row.batch
        done[work] = min(row.seconds, done.get(work, row.seconds))
    most, least = max(done), min(done)
    assert most >= 64 * least
    assert done[most] > done[least]
