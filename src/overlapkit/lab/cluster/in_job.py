"""What each process of a job started by nemo_run does.

Run as `python -m overlapkit.lab.cluster.in_job FOLDER`.

A job has one torchrun with as many processes as its largest group of blocks needs. The groups run
one after the other: each process that belongs to a group starts a rank of it, in the group's
environment, as a child, and all processes wait until the group has finished. torch is not imported
here, so that each rank initializes the GPU in the environment of its group.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from overlapkit.lab.events import FOLDER_VARIABLE
from overlapkit.lab.experiment import Experiment, Group, read_experiment
from overlapkit.lab.link import kernel

STARTER_VARIABLE = "OVERLAPKIT_LAB_STARTER"
"""Id of the process that waits for the job on this machine; when it ends, so does the job."""

_POLL_S = 0.2
_LOOPBACK = "127.0.0.1"


def run(folder: Path) -> int:
    """Run this process's part of every group; the first exit status other than 0, or 0."""
    experiment: Experiment = read_experiment(folder)
    rank = int(os.environ["RANK"])
    for group in experiment.groups:
        if rank < group.ranks:
            status = _rank(group, folder / group.name, rank)
            if status != 0:
                return status
        _until(lambda: _all_finished(group, folder / group.name))  # noqa: B023
    return 0


def _rank(group: Group, folder: Path, rank: int) -> int:
    child = subprocess.Popen(
        [sys.executable, "-m", "overlapkit.lab.rank.__main__", str(folder)],
        cwd=folder,
        env=_environment(group, folder, rank),
    )
    _until(lambda: child.poll() is not None)
    if child.returncode == 0:
        _finished(folder, rank).touch()
    # A negative number, for a signal, is not an exit status.
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _environment(group: Group, folder: Path, rank: int) -> dict[str, str]:
    """A rank's environment: torchrun's, reduced to the group, and the group's own variables."""
    # torchrun's variables about its store and restarts do not apply to the children.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}
    here = int(inherited["LOCAL_WORLD_SIZE"])
    alone = here == int(inherited["WORLD_SIZE"])
    return {
        **inherited,
        "WORLD_SIZE": str(group.ranks),
        "LOCAL_WORLD_SIZE": str(min(here, group.ranks)),
        # The name of a single machine can resolve to an address that nothing listens on.
        **({"MASTER_ADDR": _LOOPBACK} if alone else {}),
        "MASTER_PORT": _port(folder, rank),
        FOLDER_VARIABLE: str(folder),
        **group.environment,
    }


def _port(folder: Path, rank: int) -> str:
    """A port for the group's store. Rank 0 chooses it; the others read it from a file."""
    file = folder / f"port{_attempt()}"
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            aside = file.with_suffix(".new")
            aside.write_text(str(free.getsockname()[1]))
        aside.rename(file)
    _until(file.exists)
    return file.read_text()


def _all_finished(group: Group, folder: Path) -> bool:
    return all(_finished(folder, rank).exists() for rank in range(group.ranks))


def _finished(folder: Path, rank: int) -> Path:
    return folder / f"finished{_attempt()}.rank{rank}"


def _attempt() -> str:
    """Distinguishes files of a job that Slurm restarted from those of its first start."""
    return os.environ.get("SLURM_RESTART_COUNT", "0")


def _until(done: Callable[[], bool]) -> None:
    """Wait. When another process fails, torchrun ends this one."""
    starter = os.environ.get(STARTER_VARIABLE)
    while not done():
        if starter is not None and not Path(f"/proc/{starter}").exists():
            sys.exit(f"process {starter}, which started this job, has ended")
        time.sleep(_POLL_S)


if __name__ == "__main__":
    kernel.die_with_parent()
    sys.exit(run(Path(sys.argv[1])))
