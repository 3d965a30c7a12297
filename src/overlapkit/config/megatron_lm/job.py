"""The job of a launch: its environment, its GPUs, and the launcher that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.training.rules.context import Launcher
from overlapkit.config.gaps import Gap
from overlapkit.config.launchers import forks, ray, slime, swift
from overlapkit.config.launchers.origin import Origin
from overlapkit.config.megatron_lm.arguments import Arguments
from overlapkit.config.megatron_lm.dialect import MEGATRON_LM, Dialect
from overlapkit.config.megatron_lm.environment import environment_of, handed_to_job
from overlapkit.config.megatron_lm.launch_line import (
    Undetermined,
    launcher_of,
    split_launch,
    world_size_of,
)
from overlapkit.config.shell.files import MOST_BYTES
from overlapkit.config.shell.follow import Started
from overlapkit.config.shell.values import Field, Piece
from overlapkit.config.text_file import exists, read_text
from overlapkit.errors import InputError


@dataclass
class Job:
    """What a launch says besides the arguments.

    Attributes:
        origin: the launcher whose flags they are; None for Megatron-LM's own.
        environment: the variables that the job has, with their lines.
        unknown: variables that may be set, to a value that is not known.
        gaps: what may set more of them, or add arguments.
        environment_source: where they come from; None: the script.
        world_size: GPUs of the job; None where it is not known.
        world_size_unknown: why not.
        launcher: the program that starts the processes; None where it is not known.
        notes: on what the job does not see, or what is not known.
        origins: what sets the variables that the launcher sets by itself, by name.
    """

    origin: Origin | None
    environment: dict[str, Field] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    gaps: list[Gap] = field(default_factory=list)
    environment_source: str | None = None
    world_size: int | None = None
    world_size_unknown: str = ""
    launcher: Launcher | None = None
    notes: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)


def dialect_of(started: Started, words: Sequence[Field]) -> Dialect:
    """How the program of a launch spells Megatron-LM's flags."""
    if swift.start_of_arguments(started) is not None:
        return swift.DIALECT
    return slime.DIALECT if slime.is_slime(words) else MEGATRON_LM


def job_of(
    started: Started,
    others: Sequence[Started],
    slurm: dict[str, str],
    path: str,
    folder: Path,
    arguments: Arguments,
) -> Job:
    """The job of a launch.

    Args:
        started: the launch.
        others: every program that the script starts.
        slurm: the variables that Slurm sets.
        path: the script, for messages.
        folder: that of the script.
        arguments: of the job, as read.

    Raises:
        InputError: CUDA_DEVICE_MAX_CONNECTIONS is exported with a value that is not known.
    """
    job = Job(None)
    words = split_launch(started)[1]
    _environment(job, started, others, path, folder)
    job.launcher = launcher_of(started, slurm, path)
    try:
        job.world_size = world_size_of(started, slurm, path)
    except Undetermined as why:
        job.world_size_unknown = str(why)
    if arguments.dialect is swift.DIALECT:
        _for_swift(job, words, arguments, f"{path}:{started.line}")
    elif arguments.dialect is slime.DIALECT:
        _for_slime(job, words, arguments, path, started)
    else:
        names = (*arguments.former, *arguments.unknown)
        job.origin = forks.origin(tuple(dict.fromkeys(names)))
    return job


def _environment(
    job: Job, started: Started, others: Sequence[Started], path: str, folder: Path
) -> None:
    handed = handed_to_job(started, lambda name: _text_beside(name, folder))
    of_ray = ray.job_variables(started, handed, others, path, folder)
    if of_ray is None:
        found = environment_of(started, handed, path)
        job.environment, job.unknown = found.fields, found.unknown
        job.notes = found.notes
        job.gaps += started.gaps
        if found.beyond:
            what = found.beyond.partition(" may set ")[0]
            remedy = "set the variable where that is started"
            job.gaps.append(Gap(f"{path}:{started.line}", what, remedy))
        return
    job.environment, job.unknown = of_ray.values, of_ray.unknown
    job.environment_source = of_ray.source
    # What the shell that submits the job exports does not reach it.
    job.gaps += [replace(gap, variables=frozenset()) for gap in started.gaps]
    _note_unknown_variables(job, of_ray, f"{path}:{started.line}")
    hidden = ray.hidden_from_job(started, handed, of_ray, [CONNECTIONS], path)
    job.notes = [*of_ray.notes, *hidden]


def _text_beside(name: str, folder: Path) -> str | None:
    """The text of a file of variables that is here; None where it is not."""
    path = next((each for each in (name, str(folder / name)) if exists(each)), None)
    try:
        return None if path is None else read_text(path, what="file of variables", most=MOST_BYTES)
    except InputError:
        return None


def _note_unknown_variables(job: Job, handed: ray.JobVariables, where: str) -> None:
    """Where a job's runtime environment is not understood, it may set any variable."""
    if not handed.whole:
        remedy = "state its variables in the script"
        job.gaps.append(Gap(where, "ray's runtime environment", remedy))


def _for_swift(job: Job, words: Sequence[Field], arguments: Arguments, where: str) -> None:
    size, each, why = swift.world_size_of(job.environment)
    job.world_size = size
    job.world_size_unknown = f"{where}: {why}" if why else ""
    job.launcher = swift.launcher_of(each)
    for name, value in swift.SET_BY_ITSELF.items():
        job.environment[name] = Field((Piece(value, 0),))
        job.unknown.discard(name)
        job.origins[name] = "ms-swift's megatron_args.py"
    job.origin = swift.origin(arguments, words)


def _for_slime(
    job: Job, words: Sequence[Field], arguments: Arguments, path: str, started: Started
) -> None:
    job.world_size, each = slime.world_size_of(words)
    job.world_size_unknown = (
        ""
        if job.world_size
        else f"{path}:{started.line}: --actor-num-nodes or "
        "--actor-num-gpus-per-node has no value that is known"
    )
    job.launcher = Launcher("ray", each, has_mpi=False)
    for n, word in enumerate(words[:-1]):
        if word.text == slime.TRAIN_VARIABLES:
            extra = ray.JobVariables(job.environment, "", job.unknown)
            where = f"{path}:{word.line or started.line}"
            extra.add_json(words[n + 1], slime.TRAIN_VARIABLES, where, of_runtime=False)
            _note_unknown_variables(job, extra, where)
            job.notes += extra.notes
    job.origin = slime.origin(arguments)
