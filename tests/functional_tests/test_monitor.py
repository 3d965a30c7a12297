"""The monitor in real data-parallel training: two ranks over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from overlapkit.monitor import OverlapReport
from support.late import Late, needs

torch = Late("torch")

pytestmark = [pytest.mark.functional, needs("torch")]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("monitored")
    temporary = made / "temporary"
    temporary.mkdir()
    script = Path(__file__).with_name("monitor_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(made), free_port()],
        env={**ENVIRONMENT, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(temporary.glob("overlapkit*"))
    return made


def reports(folder: Path, rank: int) -> list[OverlapReport]:
    content = (folder / f"rank{rank}.json").read_bytes()
    return msgspec.json.decode(content, type=list[OverlapReport])


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_reports_its_own_steps(folder: Path, rank: int) -> None:
    got = reports(folder, rank)
    assert [(r.step, r.rank, r.skipped) for r in got] == [
        (step, rank, 0) for step in (5, 9, 13, 17, 21)
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_communication_is_of_data_parallelism(folder: Path, rank: int) -> None:
    for report in reports(folder, rank):
        assert set(report.exposed_by_dimension) == {"DP"}
        assert report.exposed_by_dimension["DP"] == report.exposed_comm_us > 0
        parts = report.compute_us + report.exposed_comm_us
        parts += report.exposed_memory_us + report.idle_us
        assert parts == pytest.approx(report.step_us, abs=0.01)
        # Of steps of a few milliseconds on a busy machine much can run between the ranges.
        assert not [doubt for doubt in report.doubts if "inside steps" not in doubt]


def test_a_step_that_one_rank_delays_is_slower_on_both(folder: Path) -> None:
    for rank in (0, 1):
        earlier, last = reports(folder, rank)[:-1], reports(folder, rank)[-1]
        assert all(r.regression is None for r in earlier[:3])
        assert last.regression is not None and last.regression.usual_us < 1e6
        assert last.step_us > 2.9e6 and last.regression.part_us > 2e6
    waits = reports(folder, 0)[-1].regression
    sleeps = reports(folder, 1)[-1].regression
    assert waits is not None and (waits.part, waits.detail) == ("exposed communication", "DP")
    assert sleeps is not None and sleeps.part == "idle"


def test_the_ranks_agree_on_the_weights(folder: Path) -> None:
    weights = [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*weights)


def test_the_example_reports_from_the_rank_that_it_names() -> None:
    script = str(ROOT / "examples" / "monitor_ddp.py")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    done = subprocess.run(
        [sys.executable, *command, free_port(), script],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "rank 0: " in done.stdout and "(DP " in done.stdout
    assert "rank 1: " not in done.stdout
