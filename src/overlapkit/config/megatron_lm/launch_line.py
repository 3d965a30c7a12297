"""What a launch line says besides the job's arguments: the number of GPUs, and the environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from megatron.bridge.training.rules.context import Launcher
from overlapkit.config.launchers import swift
from overlapkit.config.megatron_lm.arguments import ask_for, place
from overlapkit.config.megatron_lm.flags import known_flag
from overlapkit.config.shell.follow import SHOWS_TEXT, Started
from overlapkit.config.shell.slurm import number_of, slurm_variables
from overlapkit.config.shell.values import Field, Piece

_TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "run.py", "launch.py")
_PROCESSES = ("--nproc-per-node", "--nproc_per_node")
_EVERY_GPU = ("gpu", "auto")
"""Values of --nproc-per-node that mean one process for each GPU of the node."""
_DEEPSPEED_GPUS = ("--num_gpus", "--num_accelerators")
_MPI = ("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "mpirun_rsh")
_MSRUN_PROCESSES = 8
"""Processes of MindSpore's msrun, in all and on a node, without options (its documentation)."""
_MPI_PROCESSES = ("-npernode", "--npernode", "-N", "-ppn", "--ppn", "-perhost")
"""Processes per node, by Open MPI and by MPICH and its relatives."""
_MPI_MAPPING = ("-map-by", "--map-by")
_MPI_HOSTS = ("-H", "-host", "--host")
_MEGATRONS = re.compile(r"model_parallel_size|overlap_|tp_comm_|distributed_optimizer")
"""In the names of flags that only Megatron-LM and its forks have, as forks spell them."""
_FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")


@dataclass(frozen=True)
class Scheduler:
    """A scheduler's options for the size of a job step.

    Attributes:
        name: its program.
        has_mpi: whether its processes can use MPI; None where that is not known.
        tasks: options of which the value is the number of processes.
        nodes: of nodes.
        of_node: of processes on each node.
        sets: of resource sets, as jsrun groups a node's GPUs.
        sets_of_node: of resource sets on each node.
        of_set: of processes in each resource set.
    """

    name: str
    has_mpi: bool | None
    tasks: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    of_node: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    sets_of_node: tuple[str, ...] = ()
    of_set: tuple[str, ...] = ()


_SCHEDULERS = (
    Scheduler(
        "jsrun",
        True,
        ("-p", "--np"),
        sets=("-n", "--nrs"),
        sets_of_node=("-r", "--rs_per_host"),
        of_set=("-a", "--tasks_per_rs"),
    ),
    Scheduler("flux", None, ("-n", "--ntasks"), ("-N", "--nodes"), ("--tasks-per-node",)),
    Scheduler("aprun", True, ("-n",), of_node=("-N",)),
)
"""Those whose options are like Slurm's in kind and not in name: IBM's, Flux and Cray's."""


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
    head, words = split_launch(started)
    flags = [word.text for word in words if known_flag(word.text)]
    # Other programs spell common names so, such as --num_layers: these few are Megatron's alone.
    if any(map(only_megatrons, flags)):
        return len(flags)
    # A script that is not here has options of its own, such as --train-iters.
    if script_elsewhere(started) and not any(_is_python(word.text) for word in head):
        return 0
    return sum(known_flag(text) == text.partition("=")[0] for text in flags)


def _is_python(word: str) -> bool:
    """Whether a word is Python, a program of Python, or what starts one."""
    name = PurePosixPath(word).name
    return word.endswith(".py") or name.startswith("python") or name in _TORCHRUN


def only_megatrons(flag: str) -> bool:
    """Whether only Megatron-LM and its forks have a flag, as a word spells it."""
    known = known_flag(flag)
    return known is not None and _MEGATRONS.search(known.replace("-", "_")) is not None


def script_elsewhere(started: Started) -> str:
    """The script that a program is, or runs, where that is not here; empty where there is none."""
    words = [*started.outer, *started.words]
    return next((w.text for w in words if w.text.endswith((".sh", ".bash", ".sbatch"))), "")


def has_flags(text: str) -> bool:
    """Whether a text has a flag that only Megatron-LM and its forks have."""
    flags = (known_flag(word) or "" for word in _FLAG.findall(text))
    return any(_MEGATRONS.search(flag.replace("-", "_")) for flag in flags)


def world_size_of(started: Started, slurm: dict[str, str], path: str) -> int:
    """GPUs of the job: the launcher's processes per node times its nodes.

    Raises:
        Undetermined: the launch line does not determine it.
    """
    line = _Line(started, slurm, path)
    options = line.after(*_TORCHRUN)
    if options is not None:
        nodes = line.option(options, "--nnodes")
        processes = line.torchrun_processes(options)
        return (1 if nodes is None else nodes) * (1 if processes is None else processes)
    options = line.after("msrun")
    if options is not None:
        return line.option(options, "--worker_num") or _MSRUN_PROCESSES
    options = line.after("deepspeed")
    if options is not None:
        gpus = line.option(options, *_DEEPSPEED_GPUS)
        nodes = line.option(options, "--num_nodes")
        if gpus is not None:
            return gpus * (nodes or 1)
    options = line.after(*_MPI)
    if options is not None:
        ranks = line.option(options, "-np", "-n", "--np") or _slots(options)
        each, nodes = line.mpi_processes(options), number_of(line.slurm.get("SLURM_NNODES", ""))
        ranks = ranks or (each * nodes if each and nodes else None)
        if ranks is not None:
            return ranks
    for scheduler in _SCHEDULERS:
        options = line.after(scheduler.name)
        if options is not None:
            ranks = line.scheduled(options, scheduler)
            if ranks is not None:
                return ranks
    options = line.after("srun", "ibrun")
    if options is not None:
        tasks, nodes, each = line.slurm_tasks(options)
        tasks = tasks or (nodes * each if nodes and each else None)
        tasks = tasks or number_of(line.slurm.get("SLURM_NTASKS", ""))
        if tasks is not None:
            return tasks
    exported = started.environment.get("WORLD_SIZE")
    if exported is not None and (size := number_of(exported.text)) and exported.unknown is None:
        return size
    raise Undetermined(f"{path}:{started.line}: the launch does not say how many GPUs it uses")


def launcher_of(started: Started, slurm: dict[str, str], path: str) -> Launcher | None:
    """The program that starts the job's processes; None where none that is known here does."""
    line = _Line(started, slurm, path)
    options = line.after(*_TORCHRUN)
    if options is not None:
        each = _if_known(line.torchrun_processes, options)
        # Without the option torchrun starts one process.
        alone = not any(word.text.partition("=")[0] in _PROCESSES for word in options)
        return Launcher("torchrun", 1 if alone else each, has_mpi=False)
    options = line.after("msrun")
    if options is not None:
        given = any(word.text.startswith("--local_worker_num") for word in options)
        each = _if_known(line.option, options, "--local_worker_num")
        return Launcher("msrun", each if given else _MSRUN_PROCESSES, has_mpi=False)
    options = line.after("deepspeed")
    if options is not None:
        each = _if_known(line.option, options, *_DEEPSPEED_GPUS)
        return Launcher("deepspeed", each)
    options = line.after(*_MPI)
    if options is not None:
        return Launcher("mpirun", _if_known(line.mpi_processes, options), has_mpi=True)
    for scheduler in _SCHEDULERS:
        options = line.after(scheduler.name)
        if options is not None:
            each = _if_known(line.scheduled_of_node, options, scheduler)
            return Launcher(scheduler.name, each, has_mpi=scheduler.has_mpi)
    options = line.after("ibrun")
    if options is not None:
        return Launcher("ibrun", _if_known(line.processes_of_srun, options), has_mpi=True)
    options = line.after("srun")
    if options is not None:
        mpi = any(word.text.startswith("--mpi") and "none" not in word.text for word in options)
        # Without --mpi the cluster's default decides.
        each = _if_known(line.processes_of_srun, options)
        return Launcher("srun", each, has_mpi=True if mpi else None)
    return None


def _if_known(read: Callable[..., int | None], options: Sequence[Field], *more: Any) -> int | None:
    """What a reader of a line finds in its options; None where the line does not determine it."""
    try:
        return read(options, *more)
    except Undetermined:
        return None


class _Line:
    """A launch line, and what Slurm says of the job."""

    def __init__(self, started: Started, slurm: dict[str, str], path: str) -> None:
        """As the arguments of `world_size_of`."""
        self.head, _ = split_launch(started)
        exported = {n: f.text for n, f in started.environment.items() if n.startswith("SLURM_")}
        self.slurm = slurm | exported
        if any(PurePosixPath(word.text).name == "salloc" for word in self.head):
            self.slurm |= slurm_variables("", self.head)
        self._path, self._number = path, started.line

    def after(self, *launchers: str) -> list[Field] | None:
        """The words after the last of these programs; None where none of them is there."""
        names = [PurePosixPath(word.text).name for word in self.head]
        found = [number for number, name in enumerate(names) if name in launchers]
        return self.head[found[-1] + 1 :] if found else None

    def option(self, words: Sequence[Field], *names: str) -> int | None:
        """A launcher's option as a number; None where it is not given.

        Raises:
            Undetermined: its value is not known, or not a number.
        """
        return _option(words, names, self._path, self._number)

    def torchrun_processes(self, options: Sequence[Field]) -> int | None:
        """--nproc-per-node, which may ask for a process for each GPU; None where not given."""
        given = _word(options, _PROCESSES)
        each = self.gpus_of_node(self.head)
        if given is not None and given.text in _EVERY_GPU and given.unknown is None and each:
            return each
        return self.option(options, *_PROCESSES)

    def mpi_processes(self, options: Sequence[Field]) -> int | None:
        """Processes that mpirun starts on each node; None where its options do not say."""
        each = self.option(options, *_MPI_PROCESSES)
        mapping = _word(options, _MPI_MAPPING)
        if each is None and mapping is not None:
            found = re.match(r"ppr:(\d+):node\b", mapping.text)
            each = number_of(found[1]) if found is not None else None
        hosts = _word(options, _MPI_HOSTS)
        if each is None and hosts is not None and hosts.unknown is None:
            slots = {host.partition(":")[2] for host in hosts.text.split(",")}
            each = number_of(slots.pop()) if len(slots) == 1 else None
        return each

    def scheduled(self, options: Sequence[Field], by: Scheduler) -> int | None:
        """Processes of a scheduler's job step; None where its options do not say."""
        tasks = self.option(options, *by.tasks)
        nodes = self.option(options, *by.nodes)
        each = self.option(options, *by.of_node)
        sets = self.option(options, *by.sets)
        if tasks is None and sets is not None:
            # One task in each resource set, where nothing else is asked for.
            tasks = sets * (self.option(options, *by.of_set) or 1)
        return tasks or (nodes * each if nodes and each else None)

    def scheduled_of_node(self, options: Sequence[Field], by: Scheduler) -> int | None:
        """Processes of a scheduler's job step on each node; None where its options do not say."""
        each = self.option(options, *by.of_node)
        sets = self.option(options, *by.sets_of_node)
        if sets is not None:
            return sets * (self.option(options, *by.of_set) or 1)
        tasks, nodes = self.scheduled(options, by), self.option(options, *by.nodes)
        return each or (tasks // nodes if tasks and nodes and tasks % nodes == 0 else None)

    def slurm_tasks(self, options: Sequence[Field]) -> tuple[int | None, int | None, int | None]:
        """Tasks of a job step, its nodes, and tasks of each node; None each where not given."""
        tasks = self.option(options, "--ntasks", "-n")
        nodes = self.option(options, "--nodes", "-N")
        each = self.option(options, "--ntasks-per-node", "--tasks-per-node")
        nodes = nodes or number_of(self.slurm.get("SLURM_NNODES", ""))
        each = each or number_of(self.slurm.get("SLURM_NTASKS_PER_NODE", ""))
        return tasks, nodes, each

    def processes_of_srun(self, options: Sequence[Field]) -> int | None:
        """Tasks that srun starts on each node, else the GPUs of a node, which they cannot exceed
        usefully."""
        tasks, nodes, each = self.slurm_tasks(options)
        tasks = tasks or number_of(self.slurm.get("SLURM_NTASKS", ""))
        if each is None and tasks and nodes and tasks % nodes == 0:
            each = tasks // nodes
        return each or self.gpus_of_node(options)

    def gpus_of_node(self, options: Sequence[Field]) -> int | None:
        """GPUs of a node by Slurm's options or variables; None where they do not say."""
        for name in ("--gpus-per-node", "--gres"):
            given = _word(options, (name,))
            # A type may come before the number: h100:8, gpu:h100:8.
            if given is not None and (gpus := number_of(given.text.rpartition(":")[2])):
                return gpus
        return number_of(self.slurm.get("SLURM_GPUS_PER_NODE", "").rpartition(":")[2])


def _word(words: Sequence[Field], names: tuple[str, ...]) -> Field | None:
    """The word that is an option's value; None where the option is not given."""
    for number, word in enumerate(words):
        name, is_set, text = word.text.partition("=")
        if name not in names:
            continue
        if is_set:
            return Field((Piece(text, word.line),)) if word.unknown is None else word
        return words[number + 1] if number + 1 < len(words) else None
    return None


def _slots(options: Sequence[Field]) -> int | None:
    """The slots of ``-H one:8,two:8``: mpirun fills them where no number is given."""
    hosts = _word(options, _MPI_HOSTS)
    if hosts is None or hosts.unknown is not None:
        return None
    slots = [number_of(host.partition(":")[2]) for host in hosts.text.split(",")]
    return sum(filter(None, slots)) if all(slots) else None


def _option(words: Sequence[Field], names: tuple[str, ...], path: str, line: int) -> int | None:
    """A launcher's option as a number; None where it is not given.

    Raises:
        Undetermined: its value is not known, or not a number.
    """
    for number, word in enumerate(words):
        name, is_set, text = word.text.partition("=")
        value = word
        if name not in names:
            short = re.fullmatch(r"(-[a-zA-Z])(\d+)", word.text)
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
