"""A run of the lab through nemo_run: on this machine, or as a Slurm job that is collected later.

All files are in the folder that the user named: the experiment, a folder for each group of ranks,
their logs, and nemo_run's own records under `nemo/`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.errors import InputError
from overlapkit.lab.cluster.nemo import LOGS, JobOrder, JobReport
from overlapkit.lab.cluster.slurm_options import SlurmOptions
from overlapkit.lab.events import FAILED, Tail
from overlapkit.lab.experiment import Experiment, read_experiment, write_jobs
from overlapkit.lab.launch.failure import LabError, Raised
from overlapkit.lab.protocol import result_file

HOME = "nemo"
LOG = "nemo.log"
RESULTS = "results"
"""In the run's folder: what a run without an executor writes to ``--out``."""

_SCRATCH = ".tmp"
_POLL_S = 0.1
_END_S = 30.0


def prepare(experiment: Experiment, folder: Path) -> None:
    """Create the run's folder and write the experiment.

    Raises:
        InputError: the folder cannot be created, or nemo_run does not support its path.
    """
    path = str(folder.resolve())
    if shlex.quote(path) != path or "/nemo_run" in path:
        # nemo_run writes paths into scripts unquoted, and replaces every "/nemo_run".
        raise InputError(
            f"--out {folder}: nemo_run does not support paths that contain spaces, quotes or "
            "/nemo_run; name another folder"
        )
    try:
        folder.mkdir(exist_ok=True)
        write_jobs(experiment, folder)
    except OSError as error:
        raise InputError(
            f"--out {folder}: {error.strerror}; name a folder that can be written"
        ) from None


def need_sbatch() -> None:
    """Check, before anything is written, that jobs can be submitted here.

    Raises:
        InputError: sbatch is not installed.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "--executor slurm: sbatch is not on PATH; run this on a login node of the cluster, or "
            "print the job's script with --dry-run"
        )


def run_locally(experiment: Experiment, folder: Path, on_event: Callable[[Any], None]) -> None:
    """Run the job through nemo_run's LocalExecutor and wait until it ends.

    Raises:
        LabError: a rank failed, or the job took too long. All its processes were ended.
    """
    order = _order(
        experiment,
        folder,
        environment={
            # All ranks are on this machine, and the host's name can resolve to an address that
            # nothing listens on.
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        },
    )
    with _nemo(order, folder) as process:
        _listen(experiment, folder, process, on_event)
        report = _report(process, folder)
    if report.state != "SUCCEEDED" or not finished(experiment, folder):
        raise _failure(experiment, folder, f"nemo_run reports {report.state}")


def submit(
    experiment: Experiment, folder: Path, options: SlurmOptions, *, dry_run: bool
) -> JobReport:
    """Write the Slurm job's script, and submit it unless `dry_run`.

    Raises:
        LabError: the job was refused.
    """
    order = _order(
        experiment,
        folder,
        environment={},
        slurm=options.fields,
        setup=options.setup,
        dry_run=dry_run,
        blackwell=float(options.compute_capability or 0) >= 10.0,
    )
    with _nemo(order, folder) as process:
        return _report(process, folder)


def collected(folder: Path) -> Experiment:
    """The experiment of a run whose ranks have all left their results.

    Raises:
        InputError: the folder contains no run, or one that has not finished.
    """
    experiment = read_experiment(folder)
    if finished(experiment, folder):
        return experiment
    failure = _failure(experiment, folder, "no rank has reported a failure")
    raise InputError(
        f"--collect {folder}: {_missing(experiment, folder)} results are missing: the job has not "
        f"ended yet, or it failed; {failure}"
    )


def finished(experiment: Experiment, folder: Path) -> bool:
    """Whether every rank has left the results of all its blocks."""
    return _missing(experiment, folder) == 0


def _missing(experiment: Experiment, folder: Path) -> int:
    return sum(
        not (folder / group.name / result_file(block, rank)).is_file()
        for group in experiment.groups
        for block in range(len(group.job.blocks))
        for rank in range(group.ranks)
    )


def _order(
    experiment: Experiment, folder: Path, environment: dict[str, str], **more: Any
) -> JobOrder:
    largest = experiment.groups[-1]
    defaults: dict[str, Any] = {"slurm": None, "setup": (), "dry_run": False, "blackwell": False}
    return JobOrder(
        folder=str(folder.resolve()),
        ranks=largest.ranks,
        layout=largest.layout,
        environment={
            # torchrun also reads options from variables. This one: where it writes the ranks' logs.
            "PET_LOG_DIR": str(folder.resolve() / LOGS),
            **environment,
        },
        **{**defaults, **more},
    )


@contextmanager
def _nemo(order: JobOrder, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that calls nemo_run; it and its descendants are ended at the end of the block."""
    scratch = folder.resolve() / _SCRATCH
    scratch.mkdir(exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TORCHELASTIC_"))}
    if "PYTHONPATH" in inherited:
        paths = inherited["PYTHONPATH"].split(os.pathsep)
        inherited["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths)
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "overlapkit.lab.cluster.nemo"],
            cwd=folder,
            env={
                **inherited,
                "NEMORUN_HOME": str(folder.resolve() / HOME),
                "TMPDIR": str(scratch),
                # nemo_run starts the first torchrun on PATH.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C in a terminal reaches only the lab, which ends the other processes.
            start_new_session=True,
        )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.close()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _listen(
    experiment: Experiment,
    folder: Path,
    process: subprocess.Popen[bytes],
    on_event: Callable[[Any], None],
) -> None:
    """Pass on the ranks' events until the job ends.

    Raises:
        LabError: it took too long.
    """
    limit = sum(group.limit_s for group in experiment.groups)
    start = time.monotonic()
    tails = [Tail(folder / group.name, group.ranks) for group in experiment.groups]
    done = False
    while not done:
        done = process.poll() is not None
        for tail in tails:
            for event in tail.new():
                on_event(event)
        if time.monotonic() - start > limit:
            raise _failure(experiment, folder, f"the job did not finish within {limit:g} s")
        time.sleep(_POLL_S)


def _report(process: subprocess.Popen[bytes], folder: Path) -> JobReport:
    assert process.stdout is not None
    line = process.stdout.read()
    status = process.wait()
    if status != 0:
        raise LabError(f"nemo_run ended with exit status {status}", folder / LOG)
    return msgspec.json.decode(line, type=JobReport)


def _failure(experiment: Experiment, folder: Path, otherwise: str) -> LabError:
    """The first failure that a rank reported, with its last lines.

    Args:
        experiment: what is run.
        folder: where.
        otherwise: the message where no rank reported a failure.
    """
    failures = [
        (event.time, event.rank, Raised.of(event).sentence)
        for group in experiment.groups
        for event in Tail(folder / group.name, group.ranks).new()
        if event.data.get("event") == FAILED
    ]
    if not failures:
        return LabError(otherwise, _newest(folder / LOGS) or folder / LOG)
    _, rank, error = min(failures)
    log = _newest(folder / LOGS, rank)
    return LabError(f"rank {rank} {error}", log, complete=True)


def _newest(logs: Path, rank: int | None = None) -> Path | None:
    """The newest of torchrun's logs of a rank's standard error; of rank 0 by default."""
    found = sorted(
        logs.glob(f"*/attempt_*/{rank or 0}/stderr.log"), key=lambda path: path.stat().st_mtime
    )
    return found[-1] if found else None
