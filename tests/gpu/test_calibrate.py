"""`overlapkit lab calibrate` on a GPU: rates that a plan takes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from overlapkit.hardware import data_sheet
from overlapkit.plan.rates.reading import read_rates


def _visible() -> int:
    """GPUs that are visible. Where there is none, torch is not imported, which takes seconds."""
    if find_spec("torch") is None or not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


GPUS = _visible()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no GPU is visible")]

LIMIT_S = 540


def test_measured_rates_are_possible_and_a_plan_takes_them(tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    command = [sys.executable, "-m", "overlapkit.cli", "lab", "calibrate", "--device", "cuda"]
    ranks = str(min(GPUS, 8))
    command += ["--ranks", ranks, "--budget", "4m", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    rates = read_rates(str(out))
    data = data_sheet(rates.gpu)
    large = [row for row in rates.gemms if row.batch == 1 and min(row.m, row.n, row.k) >= 4096]
    assert large
    for row in large:
        assert row.seconds is not None
        # A tenth of the data sheet's rate at least, and not more than it.
        reached = 2 * row.m * row.n * row.k / row.seconds / 1e12
        assert 0.1 * data.bf16_tflops < reached <= 1.05 * data.bf16_tflops
    (stream,) = rates.memory
    assert 0.3 < stream.gb_s / (data.hbm_tbps * 1e3) <= 1.0
    plan = [
        sys.executable, "-m", "overlapkit.cli", "plan", "--model", "llama3_8b", "--gpu", rates.gpu,
        "--world-size", "8", "tp=2", "mbs=1", "gbs=32", "--rates", str(out), "--json",
    ]  # fmt: skip
    planned = subprocess.run(plan, capture_output=True, text=True, timeout=120, check=False)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["estimate"]["measured"]["share"] > 0.3
