"""Starts a run through nemo_run: `python -m overlapkit.lab.cluster.nemo`.

Reads a `JobOrder` from standard input and writes a `JobReport`, one line, to standard output.
Everything that nemo_run prints goes to standard error. This is a separate process, because nemo_run
reads NEMORUN_HOME only when it is imported, and so that everything it starts can be ended with it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from overlapkit.lab.cluster.in_job import STARTER_VARIABLE
from overlapkit.lab.experiment import Layout
from overlapkit.lab.link import kernel

EXPERIMENT = "overlapkit-lab"
TASK = "lab"
LOGS = "logs"
"""In the run's folder: torchrun's logs, one file for each rank."""


class JobOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What nemo_run must start.

    Attributes:
        folder: the run's; an absolute path that every node sees.
        ranks: number of processes.
        layout: the model's; PerfEnvPlugin derives the environment from it.
        blackwell: whether GPUs have compute capability 10.0 or above.
        slurm: fields of nemo_run's SlurmExecutor; None: run on this machine.
        setup: shell lines that run before the ranks, on Slurm.
        environment: variables of the job in addition to PerfEnvPlugin's.
        dry_run: write the job's script and start nothing.
    """

    folder: str
    ranks: int
    layout: Layout
    blackwell: bool
    slurm: dict[str, Any] | None
    setup: tuple[str, ...]
    environment: dict[str, str]
    dry_run: bool


class JobReport(msgspec.Struct, kw_only=True):
    """What became of an order.

    Attributes:
        script: path of the Slurm job's script; None on this machine.
        job: the Slurm job's id; None on this machine and where it was not submitted.
        state: nemo_run's name for the state in which a job on this machine ended; None on Slurm.
    """

    script: str | None = None
    job: str | None = None
    state: str | None = None


def fulfil(order: JobOrder) -> JobReport:
    """Start the job; on this machine, also wait until it ends."""
    import nemo_run as run

    from megatron.bridge.recipes.run_plugins import PerfEnvPlugin

    task = run.Script(
        path="overlapkit.lab.cluster.in_job", m=True, entrypoint="python", args=[order.folder]
    )
    plugin = PerfEnvPlugin(
        tp_size=order.layout.tp,
        cp_size=order.layout.cp,
        pp_size=order.layout.pp,
        num_gpus=order.ranks,
        gpu_sm100_or_newer=order.blackwell,
        # The lab's ranks already collect garbage between blocks only.
        enable_manual_gc=False,
    )
    experiment = run.Experiment(
        EXPERIMENT,
        executor=_executor(order, run),
        log_level="WARN",
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    )
    with experiment:
        experiment.add(task, name=TASK, plugins=[plugin])
        if order.dry_run:
            experiment.dryrun(log=False, delete_exp_dir=False)
        else:
            experiment.run(detach=order.slurm is not None)
    (job,) = experiment.jobs
    if order.slurm is None:
        return JobReport(state=job.state.name)
    (script,) = Path(job.executor.experiment_dir).glob("*_sbatch.sh")
    return JobReport(script=str(script), job=_slurm_id(job.handle))


def _executor(order: JobOrder, run: Any) -> Any:
    if order.slurm is None:
        return run.LocalExecutor(
            ntasks_per_node=order.ranks,
            launcher="torchrun",
            env_vars={**order.environment, STARTER_VARIABLE: str(os.getpid())},
        )
    return run.SlurmExecutor(
        **order.slurm,
        launcher="torchrun",
        packager=run.Packager(),
        tunnel=run.LocalTunnel(job_dir=""),
        job_name_prefix="overlapkit-",
        # nemo_run writes values into the script unquoted: export NAME=value.
        env_vars={name: shlex.quote(value) for name, value in order.environment.items()},
        setup_lines="\n".join(order.setup) or None,
        poll_estimated_start_time=False,
    )


def _slurm_id(handle: str) -> str | None:
    """The job's id in nemo_run's handle, scheduler://session/id/role/number."""
    parts = handle.partition("://")[2].split("/")
    return parts[1] if len(parts) > 1 else None


def _end_all(number: int, frame: FrameType | None) -> None:
    """Kill everything that was started, torchrun and its ranks, and exit."""
    for _ in range(2):
        for pid in kernel.descendants(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    os._exit(128 + number)


def main() -> None:
    """Fulfil the order on standard input."""
    kernel.adopt_orphans()
    kernel.die_with_parent(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end_all)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=JobOrder)
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    outcome = fulfil(order)
    os.write(answer, msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    main()
