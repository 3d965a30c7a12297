"""`overlapkit plan calibrate` on real profiles of torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from overlapkit.calibrate.collect import rates_in
from overlapkit.plan.rates.document import RatesDocument

RANKS = Path(__file__).with_name("calibrate_ranks.py")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiles")
    command = [sys.executable, str(RANKS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def rates(recorded: Path) -> RatesDocument:
    return rates_in([str(recorded / f"rank{rank}.json.gz") for rank in range(2)])


def times(recorded: Path, name: str) -> list[float]:
    """What the profiler itself says of an operator, in seconds, on both ranks."""
    found: list[float] = []
    for rank in range(2):
        told: dict[str, Any] = json.loads((recorded / f"times{rank}.json").read_text())
        found += [each * 1e-6 for each in told[name]]
    return found


def test_products_have_their_shapes_passes_and_times(recorded: Path, rates: RatesDocument) -> None:
    assert (rates.gpu, rates.measured) == ("cpu", "training")
    found = {row.which: row for row in rates.gemms}
    sizes = {which: (row.m, row.n, row.k) for which, row in found.items()}
    assert sizes == {"fprop": (64, 512, 256), "dgrad": (64, 256, 512), "wgrad": (512, 256, 64)}
    assert {row.precision for row in rates.gemms} == {"fp32"}
    forward = times(recorded, "aten::addmm")
    assert found["fprop"].count == len(forward) == 6
    # The file has nanoseconds; the profiler's own summary rounds to microseconds.
    assert found["fprop"].seconds == pytest.approx(median(forward), abs=2e-6)


def test_attention_has_its_shape_and_time(recorded: Path, rates: RatesDocument) -> None:
    found = {row.phase: row for row in rates.attention}
    assert found.keys() == {"forward", "backward"}
    for phase, suffix in (("forward", ""), ("backward", "_backward")):
        row = found[phase]  # type: ignore[index]
        assert (row.batch, row.heads, row.sequence, row.qk_head) == (2, 4, 128, 64)
        assert row.causal
        name = f"aten::_scaled_dot_product_flash_attention_for_cpu{suffix}"
        assert row.seconds == pytest.approx(median(times(recorded, name)), abs=2e-6)


def test_collectives_have_their_bytes_and_the_shortest_time(
    recorded: Path, rates: RatesDocument
) -> None:
    found = {row.kind: row for row in rates.collectives}
    for kind, name in (
        ("all-reduce", "gloo:all_reduce"),
        ("all-gather", "gloo:all_gather"),
        ("all-to-all", "gloo:all_to_all"),
    ):
        row = found[kind]  # type: ignore[index]
        assert (row.bytes, row.ranks, row.link) == (4 * 4096, 2, "node")
        assert row.seconds == pytest.approx(min(times(recorded, name)), abs=2e-6)
