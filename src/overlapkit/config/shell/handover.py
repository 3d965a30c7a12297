"""Which variables a program hands on to the program that it starts.

``env``, ``srun``, ``mpirun``, ``docker run`` and their like stand before a command, and each
changes the environment in its own way. Sources: the manual pages of coreutils, sudo, ssh and
Slurm; Open MPI's mpirun(1); Hydra's and Intel MPI's options; the references of docker, podman,
Apptainer, enroot, kubectl, Nsight Systems, jsrun, flux, aprun, qsub and bsub; DeepSpeed's
launcher/runner.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import NamedTuple

from overlapkit.config.shell.values import Field, Piece, part_of

Read = Callable[[str], str | None]
"""The text of a file by its name in a script; None where it is not here."""

_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_]\w*")
_SHOWN = 60


class Lost(NamedTuple):
    """A variable that a program does not hand on, or perhaps not.

    Attributes:
        value: what it was before.
        why: the program and its reason, with what would hand it on, as a clause.
        certain: whether the next program certainly does not see it.
    """

    value: Field
    why: str
    certain: bool


@dataclass
class Handed:
    """Variables on their way through the programs of a command.

    Attributes:
        fields: those that the next program sees, by name.
        lost: those that it does not see, or perhaps not.
        unread: why it may see others too; empty where it certainly does not.
    """

    fields: dict[str, Field]
    lost: dict[str, Lost] = field(default_factory=dict)
    unread: str = ""

    def set(self, name: str, value: Field) -> None:
        self.fields[name] = value
        self.lost.pop(name, None)

    def keep(self, wanted: Callable[[str], bool], why: str, *, certain: bool = True) -> None:
        """Lose every variable whose name is not wanted."""
        for name in [n for n in self.fields if not wanted(n)]:
            self.lost[name] = Lost(self.fields.pop(name), why, certain)

    def add(self, word: Field, before: Mapping[str, Field]) -> None:
        """``NAME=value`` sets a variable; ``NAME`` takes it from those that there were before."""
        found = _ASSIGNED.match(word.text)
        if found is not None:
            self.set(found[1], part_of(word, len(found[1]) + 1))
        elif word.text in before and word.unknown is None:
            self.set(word.text, before[word.text])

    def add_list(self, word: Field, before: Mapping[str, Field], separator: str = ",") -> None:
        """Several of them, with a separator between."""
        for each in _parts(word, separator):
            self.add(each, before)

    def add_file(self, name: Field, read: Read) -> None:
        """The variables in a file with one ``NAME=value`` in a line."""
        text = read(name.text) if name.unknown is None else None
        if text is None:
            self.unread = f"{name.text[:_SHOWN] or 'a file'} may set it, which is not read"
            return
        before = dict(self.fields)
        for line in text.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                self.add(Field((Piece(line.strip(), 0),)), before)


def hand_on(words: Sequence[Field], fields: Mapping[str, Field], read: Read) -> Handed:
    """What a command's last program sees of a shell's exported variables.

    Args:
        words: the programs before it with their options.
        fields: the exported variables by name.
        read: gives the text of a file that an option names.
    """
    handed = Handed(dict(fields))
    for name, its in programs_of(words):
        change = _CHANGES.get(name)
        if change is not None:
            change(handed, _Options(name, its), read)
    return handed


def programs_of(words: Sequence[Field]) -> Iterator[tuple[str, Sequence[Field]]]:
    """Each program that starts another one, with the words after it up to the next program."""
    names = [_program(word) for word in words]
    starts = [n for n, name in enumerate(names) if name]
    for n, end in zip(starts, [*starts[1:], len(words)], strict=False):
        yield names[n], words[n + 1 : end]


def starts_others(word: Field) -> bool:
    """Whether a word is a program that starts the command after it."""
    return bool(_program(word))


def _program(word: Field) -> str:
    name = PurePosixPath(word.text).name
    known = word.unknown is None and (name in _CHANGES or name in _PLAIN)
    return name if known else ""


class _Options:
    """The words after a program."""

    def __init__(self, program: str, words: Sequence[Field]) -> None:
        self.program = program
        self.words = words

    def has(self, *names: str) -> bool:
        return any(word.text.partition("=")[0] in names for word in self.words)

    def values(self, *names: str) -> Iterator[Field]:
        """The values of options: ``--name value``, ``--name=value``, ``-n value``, ``-nvalue``."""
        for n, word in enumerate(self.words):
            name, is_set, _ = word.text.partition("=")
            short = next((s for s in names if len(s) == 2 and word.text.startswith(s)), None)
            if word.text in names:
                if n + 1 < len(self.words):
                    yield self.words[n + 1]
            elif name in names and is_set:
                yield part_of(word, len(name) + 1)
            elif short is not None and not word.text.startswith("--"):
                yield part_of(word, 2)

    @property
    def action(self) -> str:
        """The first word that is no option, such as ``run`` in ``docker run``."""
        return next((w.text for w in self.words if not w.text.startswith("-")), "")

    @property
    def shown(self) -> str:
        return f"{self.program} {self.action}"


def _parts(word: Field, separator: str) -> Iterator[Field]:
    at = 0
    for text in word.text.split(separator):
        yield part_of(word, at, at + len(text))
        at += len(text) + len(separator)


def _nothing(_: str) -> bool:
    return False


# ------------------------------------------------------------------------- on the same machine


def _env(handed: Handed, options: _Options, read: Read) -> None:
    skipped = False
    for n, word in enumerate(options.words):
        text = word.text
        if skipped:
            skipped = False
        elif text in ("-i", "-", "--ignore-environment"):
            handed.keep(_nothing, f"env {text} empties the environment; omit it")
        elif text in ("-u", "--unset", "-C", "--chdir"):
            skipped = True
            if text in ("-u", "--unset") and n + 1 < len(options.words):
                _remove(handed, options.words[n + 1].text, f"env {text}")
        elif text.startswith("--unset="):
            _remove(handed, text.partition("=")[2], "env --unset")
        elif text.startswith("-u"):
            _remove(handed, text[2:], "env -u")
        elif _ASSIGNED.match(text):
            handed.add(word, {})
        elif not text.startswith("-"):
            break


def _remove(handed: Handed, name: str, by: str) -> None:
    handed.keep(lambda each: each != name, f"{by} {name} removes it; omit that")


_OF_SUDO = frozenset(
    {"PATH", "HOME", "SHELL", "TERM", "USER", "LOGNAME", "MAIL", "LANG", "DISPLAY"}
)


def _sudo(handed: Handed, options: _Options, read: Read) -> None:
    listed = [p.text for v in options.values("--preserve-env") for p in _parts(v, ",")]
    if not options.has("-E") and (listed or not options.has("--preserve-env")):
        wanted = _OF_SUDO.union(listed)
        handed.keep(wanted.__contains__, "sudo hands on no variables without -E; add it")
    for word in options.words:
        if _ASSIGNED.match(word.text):
            handed.add(word, {})


def _su(handed: Handed, options: _Options, read: Read) -> None:
    if options.has("-", "-l", "--login"):
        handed.keep(_OF_SUDO.__contains__, "su with a login shell hands on nothing; add -m")


def _nsys(handed: Handed, options: _Options, read: Read) -> None:
    for value in options.values("-e", "--env-var"):
        handed.add_list(value, {})


# --------------------------------------------------------------------------------- containers


def _docker(handed: Handed, options: _Options, read: Read) -> None:
    before = dict(handed.fields)
    by = options.shown
    if not options.has("--env-host"):
        handed.keep(_nothing, f"{by} hands on only what -e or --env-file names; add -e NAME")
    handed.unread = f"what {by} starts may set it itself, which is not read"
    for file in options.values("--env-file"):
        handed.add_file(file, read)
    for value in options.values("-e", "--env"):
        handed.add(value, before)


def _enroot(handed: Handed, options: _Options, read: Read) -> None:
    before = dict(handed.fields)
    handed.keep(_nothing, "enroot start hands on only what -e names; add -e NAME")
    handed.unread = "the image that enroot starts may set it, which is not read"
    for value in options.values("-e", "--env"):
        handed.add(value, before)


def _singularity(handed: Handed, options: _Options, read: Read) -> None:
    before = dict(handed.fields)
    clean = [o for o in ("-e", "--cleanenv", "-C", "--containall") if options.has(o)]
    if clean:
        why = f"{options.program} {clean[0]} hands on only what --env names; add --env NAME=value"
        handed.keep(_nothing, why)
        handed.unread = f"the image that {options.program} starts may set it, which is not read"
    for name, value in before.items():
        for prefix in ("SINGULARITYENV_", "APPTAINERENV_"):
            if name.startswith(prefix):
                handed.set(name.removeprefix(prefix), value)
    for file in options.values("--env-file"):
        handed.add_file(file, read)
    for value in options.values("--env"):
        handed.add_list(value, before)


def _kubectl(handed: Handed, options: _Options, read: Read) -> None:
    if options.action == "exec":
        handed.keep(_nothing, "kubectl exec hands on no variables; set it after --, with env")
        handed.unread = "the pod may set it, which is not read"


# ----------------------------------------------------------------------------- other machines


def _ssh(handed: Handed, options: _Options, read: Read) -> None:
    by = options.program
    handed.keep(_nothing, f"{by} hands on no variables; set it in the command that {by} starts")
    handed.unread = f"the files that a shell reads on the host of {by} may set it"


def _deepspeed(handed: Handed, options: _Options, read: Read) -> None:
    nodes = [value.text for value in options.values("--num_nodes", "--nnodes")]
    others = options.has("-H", "--hostfile", "-i", "--include") or any(n != "1" for n in nodes)
    if others and not options.has("--no_ssh"):
        by_itself = ("NCCL", "PYTHON", "MV2", "UCX", "MLFLOW")
        handed.keep(
            lambda name: name.startswith(by_itself),
            "deepspeed hands on to other nodes only variables of NCCL, Python, MVAPICH and UCX, "
            "and what the file .deepspeed_env has; set it there",
            certain=False,
        )


_OF_HYDRA = ("-ppn", "-perhost", "-hosts", "-f", "-genv", "-genvlist", "-genvall", "-env")
_HOSTS = ("-H", "-host", "--host", "-hosts")
_HOST_FILES = ("-hostfile", "--hostfile", "-machinefile", "--machinefile")


def _mpi(handed: Handed, options: _Options, read: Read) -> None:
    before = dict(handed.fields)
    hydra = options.program == "mpiexec.hydra" or options.has(*_OF_HYDRA)
    by = options.program
    none = [o for o in ("-genvnone", "-envnone", "-genvlist", "-envlist") if options.has(o)]
    if none:
        handed.keep(_nothing, f"{by} {none[0]} hands on nothing else; omit it")
    elif not hydra and _several_hosts(options):
        handed.keep(
            _nothing,
            f"Open MPI hands on to other nodes only what -x names; add {by} -x NAME",
            certain=False,
        )
    for value in options.values("-genvlist", "-envlist"):
        handed.add_list(value, before)
    for n, word in enumerate(options.words):
        following = options.words[n + 1 : n + 3]
        if word.text in ("-x", "--x") and following:
            handed.add(following[0], before)
        elif word.text in ("-genv", "-env") and following:
            if "=" in following[0].text:
                handed.add(following[0], before)
            elif len(following) == 2:
                handed.set(following[0].text, following[1])
        elif word.text == "mca_base_env_list" and following:
            handed.add_list(following[0], before, ";")


def _several_hosts(options: _Options) -> bool:
    """Whether processes may be on other machines: only those of this one are its children."""
    hosts = {h.text.partition(":")[0] for v in options.values(*_HOSTS) for h in _parts(v, ",")}
    return (
        options.has(*_HOST_FILES)
        or len(hosts) > 1
        or any(value.unknown is not None for value in options.values(*_HOSTS))
    )


def _ray(handed: Handed, options: _Options, read: Read) -> None:
    if [word.text for word in options.words[:2]] == ["job", "submit"]:
        # Whoever started ray may have had them.
        why = "ray passes on only env_vars of its runtime environment; set it there"
        handed.keep(_nothing, why, certain=False)


# --------------------------------------------------------------------------------- schedulers


def _slurm(handed: Handed, options: _Options, read: Read) -> None:
    for given in options.values("--export"):
        names = [part.text for part in _parts(given, ",")]
        if given.unknown is not None and "ALL" not in names:
            why = f"{options.program} --export has a value that is not known"
            handed.keep(_nothing, why, certain=False)
            handed.unread = why
            continue
        before = dict(handed.fields)
        if "ALL" not in names:
            handed.keep(
                lambda name: name.startswith("SLURM_"),
                f"{options.program} --export={given.text[:_SHOWN]} hands on nothing else; begin it "
                "with ALL",
            )
        handed.add_list(given, before)


def _jsrun(handed: Handed, options: _Options, read: Read) -> None:
    for name in options.values("-D", "--env_no_propagate"):
        _remove(handed, name.text, "jsrun -D")
    for value in options.values("-E", "--env"):
        handed.add(value, handed.fields)


def _flux(handed: Handed, options: _Options, read: Read) -> None:
    before = dict(handed.fields)
    for rule in [*options.values("--env-remove"), *options.values("--env")]:
        text = rule.text.removeprefix("-")
        if options.has("--env-remove") and rule in [*options.values("--env-remove")]:
            text = rule.text
        elif not rule.text.startswith("-"):
            handed.add(rule, before)
            continue
        handed.keep(
            lambda name, pattern=text: not fnmatchcase(name, pattern),  # type: ignore[misc]
            f"flux removes {text[:_SHOWN]}; omit that",
        )


def _aprun(handed: Handed, options: _Options, read: Read) -> None:
    for value in options.values("-e", "--environment-override"):
        handed.add(value, {})


def _qsub(handed: Handed, options: _Options, read: Read) -> None:
    before = dict(handed.fields)
    if not options.has("-V"):
        handed.keep(_nothing, "qsub hands on only what -v names; add -V")
    for value in options.values("-v"):
        handed.add_list(value, before)


def _bsub(handed: Handed, options: _Options, read: Read) -> None:
    for given in options.values("-env"):
        before = dict(handed.fields)
        names = [part.text.strip() for part in _parts(given, ",")]
        if "all" not in names:
            handed.keep(_nothing, f"bsub -env {given.text[:_SHOWN]} hands on nothing else")
        for part in _parts(given, ","):
            start = len(part.text) - len(part.text.lstrip())
            handed.add(part_of(part, start), before)


_CHANGES: dict[str, Callable[[Handed, _Options, Read], None]] = {
    "env": _env,
    "sudo": _sudo,
    "su": _su,
    "runuser": _su,
    "nsys": _nsys,
    **dict.fromkeys(("docker", "podman", "nerdctl"), _docker),
    "enroot": _enroot,
    **dict.fromkeys(("singularity", "apptainer"), _singularity),
    "kubectl": _kubectl,
    **dict.fromkeys(("ssh", "pdsh", "clush", "pssh", "parallel-ssh"), _ssh),
    "deepspeed": _deepspeed,
    "ray": _ray,
    **dict.fromkeys(("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun"), _mpi),
    "srun": _slurm,
    "sbatch": _slurm,
    "jsrun": _jsrun,
    "flux": _flux,
    "aprun": _aprun,
    "qsub": _qsub,
    "bsub": _bsub,
}
"""Programs that change what they hand on, and how."""

_PLAIN = frozenset(
    {"nohup", "timeout", "numactl", "taskset", "stdbuf", "ncu", "time", "nice", "ionice", "chrt"}
    | {"unbuffer", "script", "setsid", "strace", "gdb", "catchsegv", "flock"}
    | {"parallel", "xargs", "ibrun", "salloc", "torchrun", "bash", "sh", "zsh", "dumb-init", "tini"}
    | {"chroot", "watch", "gosu", "ddtrace-run", "rocprof", "rocprofv3", "perf", "valgrind"}
    | {"compute-sanitizer", "accelerate", "python", "python3"}
)
"""Programs that start another one with the environment that they have."""
