"""What a launch line says besides the job's arguments: the number of GPUs, and the environment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.training.rules.context import Launcher
from overlapkit.config.launchers import swift
from overlapkit.config.megatron_lm.arguments import ask_for, place
from overlapkit.config.megatron_lm.flags import known_flag
from overlapkit.config.shell.follow import SHOWS_TEXT, Started
from overlapkit.config.shell.slurm import number_of
from overlapkit.config.shell.values import Field, Piece

_TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "run.py", "launch.py")
_PROCESSES = ("--nproc-per-node", "--nproc_per_node")
_MPI = ("mpirun", "mpiexec")
_MEGATRONS = re.compile(r"model_parallel_size|overlap_|tp_comm_|distributed_optimizer")
"""In the names of flags that only Megatron-LM and its forks have, as forks spell them."""
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


class Undetermined(Exception):
    """Why a launch line does not determine the number of GPUs, and how to give it."""


def split_launch(started: Started) -> tuple[list[Field], list[Field]]:
    """The launcher's words, those of outer programs first, and the job's arguments."""
    words = list(started.words)
    entry = swift.start_of_arguments(started)
    entry = _entry(words) if entry is None else entry
    return [*started.outer, *words[:entry]], words[entry:]


def _entry(words: Sequence[Field]) -> int:
    """Where the job's arguments begin: after the training script or module."""
    for number, word in enumerate(words):
        text = word.text
        if text.endswith(".py") and "torch/distributed/" not in text:
            return number + 1
        module = words[number - 1].text == "-m" if number else False
        if module and not text.startswith("torch.distributed."):
            return number + 1
    flags = (number for number, word in enumerate(words) if known_flag(word.text))
    return next(flags, len(words))


def is_launch(started: Started) -> int:
    """How many flags of Megatron-LM a started program has; 0 where it only shows them."""
    if started.words and started.words[0].text in SHOWS_TEXT:
        return 0
    if swift.start_of_arguments(started) is not None:
        return len(started.words)
    flags = [word.text for word in split_launch(started)[1] if known_flag(word.text)]
    plain = [text for text in flags if known_flag(text) == text.partition("=")[0]]
    # Other programs spell common names so, such as --num_layers: these few are Megatron's alone.
    return len(flags) if any(map(_MEGATRONS.search, flags)) else len(plain)


def world_size_of(started: Started, slurm: dict[str, str], path: str) -> int:
    """GPUs of the job: the launcher's processes per node times its nodes.

    Raises:
        Undetermined: the launch line does not determine it.
    """
    head, _ = split_launch(started)
    slurm = slurm | {n: f.text for n, f in started.environment.items() if n.startswith("SLURM_")}
    options = _after(head, *_TORCHRUN)
    if options is not None:
        nodes = _option(options, ("--nnodes",), path, started.line)
        processes = _option(options, _PROCESSES, path, started.line)
        return (1 if nodes is None else nodes) * (1 if processes is None else processes)
    options = _after(head, "deepspeed")
    if options is not None:
        gpus = _option(options, ("--num_gpus",), path, started.line)
        nodes = _option(options, ("--num_nodes",), path, started.line)
        if gpus is not None:
            return gpus * (nodes or 1)
    options = _after(head, *_MPI)
    if options is not None:
        ranks = _option(options, ("-np", "-n", "--np"), path, started.line)
        if ranks is not None:
            return ranks
    options = _after(head, "srun")
    if options is not None:
        tasks = _option(options, ("--ntasks", "-n"), path, started.line)
        nodes = _option(options, ("--nodes", "-N"), path, started.line)
        each = _option(options, ("--ntasks-per-node",), path, started.line)
        nodes = nodes or number_of(slurm.get("SLURM_NNODES", ""))
        each = each or number_of(slurm.get("SLURM_NTASKS_PER_NODE", ""))
        tasks = tasks or (nodes * each if nodes and each else None)
        tasks = tasks or number_of(slurm.get("SLURM_NTASKS", ""))
        if tasks is not None:
            return tasks
    exported = started.environment.get("WORLD_SIZE")
    if exported is not None and (size := number_of(exported.text)) and exported.unknown is None:
        return size
    raise Undetermined(f"{path}:{started.line}: the launch does not say how many GPUs it uses")


def launcher_of(started: Started, slurm: dict[str, str], path: str) -> Launcher | None:
    """The program that starts the job's processes; None where none that is known here does."""
    head, _ = split_launch(started)
    try:
        options = _after(head, *_TORCHRUN)
        if options is not None:
            each = _option(options, _PROCESSES, path, started.line)
            return Launcher("torchrun", 1 if each is None else each, has_mpi=False)
        if _after(head, *_MPI) is not None:
            return Launcher("mpirun", has_mpi=True)
        options = _after(head, "srun")
        if options is not None:
            each = _option(options, ("--ntasks-per-node",), path, started.line)
            each = each or number_of(slurm.get("SLURM_NTASKS_PER_NODE", ""))
            mpi = any(word.text.startswith("--mpi") and "none" not in word.text for word in options)
            # Without --mpi the cluster's default decides.
            return Launcher("srun", each, has_mpi=True if mpi else None)
    except Undetermined:
        return None
    return None


def _after(head: list[Field], *launchers: str) -> list[Field] | None:
    """The words after the last of these programs; None where none of them is there."""
    found = [n for n, word in enumerate(head) if PurePosixPath(word.text).name in launchers]
    return head[found[-1] + 1 :] if found else None


def _option(words: Sequence[Field], names: tuple[str, ...], path: str, line: int) -> int | None:
    """A launcher's option as a number; None where it is not given.

    Raises:
        Undetermined: its value is not known, or not a number.
    """
    for number, word in enumerate(words):
        name, is_set, text = word.text.partition("=")
        value = word
        if name not in names:
            short = re.fullmatch(r"(-[nN])(\d+)", word.text)
            if short is None or short[1] not in names:
                continue
            text, is_set = short[2], "="
        if not is_set:
            if number + 1 >= len(words):
                return None
            value = words[number + 1]
            text = value.text
        where = place(path, value, line)
        if value.unknown is not None:
            raise Undetermined(str(ask_for(value.unknown, name, where)))
        size = number_of(text)
        if size is None:
            raise Undetermined(f"{where}: {name} {text[:30]} is not a number")
        return size
    return None


def environment_of(started: Started, path: str) -> tuple[dict[str, Field], list[str]]:
    """The script's variables that the job's processes see, and notes on those that they do not.

    Raises:
        InputError: CUDA_DEVICE_MAX_CONNECTIONS is exported with a value that is not known.
    """
    head, _ = split_launch(started)
    fields = dict(started.environment)
    for word in head:
        option, _, rest = word.text.partition("=")
        passed = {"--export": rest.split(","), "--env": [rest]}.get(option, [word.text])
        for assigned in passed:
            found = _ASSIGNED.fullmatch(assigned)
            if found is not None and word.unknown is None:
                fields[found[1]] = Field((Piece(found[2], word.line),))
    notes = []
    if CONNECTIONS in fields and (unknown := fields[CONNECTIONS].unknown) is not None:
        raise ask_for(unknown, CONNECTIONS, f"{path}:{started.line}")
    if CONNECTIONS in started.not_exported and CONNECTIONS not in fields:
        value = started.not_exported[CONNECTIONS]
        notes.append(
            f"{place(path, value)}: {CONNECTIONS}={value.text} is not exported, so the job does "
            "not see it; write export before it"
        )
    return {n: f for n, f in fields.items() if f.unknown is None}, notes
