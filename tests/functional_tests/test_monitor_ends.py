"""What the monitor leaves behind when the training ends, and on a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.late import needs

pytestmark = [pytest.mark.functional, needs("torch")]

PATIENCE = 300.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "temporary"
    made.mkdir()
    return made


def eventually(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    # Nobody may collect it where the first process of a container is no init.
    return stat.rpartition(")")[2].split()[0] == "Z"


SCRIPT = """
import logging, sys, time, torch
from overlapkit.monitor import OverlapMonitor

logging.basicConfig(format="%(message)s")
monitor = OverlapMonitor(every=3, steps=1, report=print)
for _ in range(4):
    torch.ones(64, 64) @ torch.ones(64, 64)
    monitor.step()
"""


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + program],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestTheEndOfTheProcess:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_nothing_is_left_when_it_is_killed(self, number: int, folder: Path) -> None:
        # The worker is stopped with its folder in use, until the training is gone.
        program = "print('worker', monitor._analysis._process.pid, flush=True)\ntime.sleep(600)"
        with start(program, folder) as training:
            assert training.stdout is not None
            worker = int(training.stdout.readline().split()[1])
            eventually(lambda: list(folder.iterdir()))
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
            training.send_signal(number)
            training.wait(PATIENCE)
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)
        eventually(lambda: not list(folder.iterdir()))
        eventually(lambda: has_ended(worker))

    def test_nothing_is_left_when_it_ends_without_close(self, folder: Path) -> None:
        with start("", folder) as training:
            assert training.wait(PATIENCE) == 0
        assert not list(folder.iterdir())

    def test_an_exit_in_a_window_is_quiet(self, folder: Path) -> None:
        with start("monitor._every = 4; monitor.step(); monitor.step(); sys.exit(3)", folder) as t:
            assert t.wait(PATIENCE) == 3
            assert t.stderr is not None and "Traceback" not in t.stderr.read()


def _may_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    if not _may_mount():
        pytest.skip("a file system of its own cannot be mounted here")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=4k none {disk} && exec "
    program = SCRIPT + "monitor.close()\nprint('trained')"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount + '"$@"', "sh", sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(disk)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.splitlines() == ["trained"], done
    said = [line for line in done.stderr.splitlines() if line.startswith("overlap monitor: ")]
    assert len(said) == 1 and "full" in said[0], done.stderr
