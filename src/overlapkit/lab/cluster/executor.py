"""A run of the lab through nemo_run: on this machine, or as a Slurm job that is collected later.

Everything stands in the folder that the user named: the plan, a folder per group of ranks, their
logs, and nemo_run's own records under `nemo/`.
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
from overlapkit.lab.cluster.nemo import LOGS, Order, Outcome
from overlapkit.lab.cluster.slurm_options import SlurmOptions
from overlapkit.lab.events import FAILED, Tail
from overlapkit.lab.experiment import Plan, read_plan, write_jobs
from overlapkit.lab.launch.failure import LabError
from overlapkit.lab.protocol import result_file

HOME = "nemo"
LOG = "nemo.log"
RESULTS = "results"
"""In the run's folder: what `--out` holds of a run without an executor."""

_SCRATCH = ".tmp"
_POLL_S = 0.1
_END_S = 30.0


def prepare(run: Plan, folder: Path) -> None:
    """Make the run's folder, whole, or leave nothing.

    Raises:
        InputError: the folder cannot be made, or nemo_run could not write its path.
    """
    path = str(folder.resolve())
    if shlex.quote(path) != path or "/nemo_run" in path:
        # It writes paths into scripts unquoted, and replaces "/nemo_run" wherever it stands.
        raise InputError(
            f"--out {folder}: nemo_run takes no path with spaces, quotes or /nemo_run in it; "
            "name another folder"
        )
    try:
        folder.mkdir(exist_ok=True)
        write_jobs(run, folder)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; name a folder to write to") from None


def need_sbatch() -> None:
    """Slurm must be here before anything is written.

    Raises:
        InputError: it is not.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "--executor slurm: sbatch is not on PATH; run this on a login node of the cluster, or "
            "with --dry-run to have the job's script"
        )


def run_locally(run: Plan, folder: Path, on_event: Callable[[Any], None]) -> None:
    """Run the job through nemo_run's LocalExecutor and wait for its end.

    Raises:
        LabError: a rank failed, or the job took too long. Nothing of it is left running.
    """
    order = _order(
        run,
        folder,
        environment={
            # Children of torchrun see one machine: a host's name may resolve to an address that
            # nothing listens on.
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        },
    )
    with _nemo(order, folder) as process:
        _listen(run, folder, process, on_event)
        outcome = _outcome(process, folder)
    if outcome.state != "SUCCEEDED" or not finished(run, folder):
        raise _failure(run, folder, f"nemo_run says {outcome.state}")


def submit(run: Plan, folder: Path, options: SlurmOptions, *, dry_run: bool) -> Outcome:
    """Write the Slurm job's script, and submit it unless `dry_run`.

    Raises:
        LabError: the job was refused.
    """
    order = _order(
        run,
        folder,
        environment={},
        slurm=options.fields,
        setup=options.setup,
        dry_run=dry_run,
        blackwell=float(options.compute_capability or 0) >= 10.0,
    )
    with _nemo(order, folder) as process:
        return _outcome(process, folder)


def collected(folder: Path) -> Plan:
    """The plan of a run whose ranks have all left their results.

    Raises:
        InputError: the folder holds no run, or one that is not done.
    """
    run = read_plan(folder)
    if finished(run, folder):
        return run
    told = _failure(run, folder, "no rank has told of a failure")
    raise InputError(
        f"--collect {folder}: {_missing(run, folder)} results are missing: the job has not ended "
        f"yet, or failed; {told}"
    )


def finished(run: Plan, folder: Path) -> bool:
    """Whether every rank has left the results of all its blocks."""
    return _missing(run, folder) == 0


def _missing(run: Plan, folder: Path) -> int:
    return sum(
        not (folder / group.name / result_file(block, rank)).is_file()
        for group in run.groups
        for block in range(len(group.job.blocks))
        for rank in range(group.ranks)
    )


def _order(run: Plan, folder: Path, environment: dict[str, str], **more: Any) -> Order:
    largest = run.groups[-1]
    defaults: dict[str, Any] = {"slurm": None, "setup": (), "dry_run": False, "blackwell": False}
    return Order(
        folder=str(folder.resolve()),
        ranks=largest.ranks,
        layout=largest.layout,
        environment={
            # torchrun reads its options from variables too: logs of each rank, in the folder.
            "PET_LOG_DIR": str(folder.resolve() / LOGS),
            **environment,
        },
        **{**defaults, **more},
    )


@contextmanager
def _nemo(order: Order, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that talks to nemo_run; afterwards it and all below it have ended."""
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
                # nemo_run starts the torchrun that it finds first.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # A terminal's Ctrl-C goes to the lab alone, which ends the rest.
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
    run: Plan,
    folder: Path,
    process: subprocess.Popen[bytes],
    on_event: Callable[[Any], None],
) -> None:
    """Hand on what the ranks tell until the job ends.

    Raises:
        LabError: it took too long.
    """
    limit = sum(group.limit_s for group in run.groups)
    start = time.monotonic()
    tails = [Tail(folder / group.name, group.ranks) for group in run.groups]
    done = False
    while not done:
        done = process.poll() is not None
        for tail in tails:
            for event in tail.new():
                on_event(event)
        if time.monotonic() - start > limit:
            raise _failure(run, folder, f"the job was not done after {limit:g} s")
        time.sleep(_POLL_S)


def _outcome(process: subprocess.Popen[bytes], folder: Path) -> Outcome:
    assert process.stdout is not None
    line = process.stdout.read()
    status = process.wait()
    if status != 0:
        raise LabError(f"nemo_run ended with exit status {status}", folder / LOG)
    return msgspec.json.decode(line, type=Outcome)


def _failure(run: Plan, folder: Path, otherwise: str) -> LabError:
    """The first failure that a rank told of, with its last lines."""
    told = [
        (event.time, event.rank, str(event.data.get("error")))
        for group in run.groups
        for event in Tail(folder / group.name, group.ranks).new()
        if event.data.get("event") == FAILED
    ]
    if not told:
        return LabError(otherwise, _newest(folder / LOGS) or folder / LOG)
    _, rank, error = min(told)
    return LabError(f"rank {rank} failed: {error}", _newest(folder / LOGS, rank))


def _newest(logs: Path, rank: int | None = None) -> Path | None:
    """The last log that torchrun kept of a rank's standard error; of rank 0 by default."""
    found = sorted(
        logs.glob(f"*/attempt_*/{rank or 0}/stderr.log"), key=lambda path: path.stat().st_mtime
    )
    return found[-1] if found else None
