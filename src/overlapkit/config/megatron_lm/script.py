"""Reads a Megatron-LM command line: from the shell script that starts the job, or as arguments.

The script is followed, never run (`config.shell`). The result is the same `Settings` as from a YAML
file, with Megatron-LM's own defaults filled in, so that Megatron-LM's rules apply to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.bridge.training.edits import ENV
from overlapkit.config.gaps import Gap, unread
from overlapkit.config.launchers.deepspeed import is_deepspeed, refusal
from overlapkit.config.launchers.hydra import hydra_launch, reader_of_launch, tree_of_launch
from overlapkit.config.megatron_lm.arguments import (
    Arguments,
    UnknownValue,
    read_arguments,
)
from overlapkit.config.megatron_lm.flag_versions import stacks_with
from overlapkit.config.megatron_lm.flags import known_flag
from overlapkit.config.megatron_lm.job import Job, dialect_of, job_of
from overlapkit.config.megatron_lm.launch_line import is_launch, split_launch
from overlapkit.config.megatron_lm.no_launch import (
    ask_for_arguments,
    ask_for_branch,
    choices_of,
    without_launch,
)
from overlapkit.config.overrides import Override, parse_override
from overlapkit.config.places import Place, word_place
from overlapkit.config.run import Launch, Settings, read_settings
from overlapkit.config.shell.files import MOST_BYTES
from overlapkit.config.shell.follow import Followed, Started, follow_script
from overlapkit.config.shell.slurm import slurm_variables
from overlapkit.config.shell.values import Field, Piece
from overlapkit.config.text_file import exists, read_text
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.errors import InputError, SeveralLaunches
from overlapkit.output.console import encodable

ARGUMENTS = "the arguments"
"""What messages call arguments that are in no file."""

_FEW_FLAGS = 3
"""A command with fewer flags is a tool (a checkpoint converter), if another command has more."""
_NAME = re.compile(r"[A-Za-z_]\w*|\d{1,3}")
_BRIDGE_ONLY = ("comm_overlap", "mixed_precision")


def read_megatron_lm(
    script: str,
    variables: Mapping[str, str] | None = None,
    *,
    overrides: Iterable[str] = (),
    world_size: int | None = None,
    allow_unknown: bool = False,
) -> Settings:
    """The settings of the Megatron-LM job that a shell script starts.

    Args:
        script: the script; ``FILE:LINE`` names one of several launches in it.
        variables: values by name that the script does not set; they win over its own; "1" is its
            first argument.
        overrides: ``section.key=value``, applied last.
        world_size: GPUs of the job, where the caller knows them; a note then says where the script
            has another number.
        allow_unknown: whether a flag that looks like a misspelt one is passed over.

    Returns:
        Settings with the framework "megatron-lm", and `launch` with the exported environment, the
        world size where the launcher states it, and what was assumed.

    Raises:
        InputError: it is not a script, it starts no Megatron-LM job or several, a flag that matters
            has no known value (the message has the variable to give), or a flag is wrong.
    """
    name, wanted = _named(script)
    path = encodable(name)
    text = read_text(name, what="launch script", most=MOST_BYTES).replace("\r\n", "\n")
    given = _checked(variables or {})
    slurm = slurm_variables(text)
    followed = follow_script(text, path, given, slurm)
    lines = text.splitlines()
    folder = Path(name).parent
    other = _of_hydra(followed, path, lines, slurm, folder, overrides)
    if other is not None and wanted in (None, other[1]):
        return other[0]
    job = Job(None)
    try:
        started, arguments, more = _chosen(followed, path, lines, wanted, allow_unknown, folder)
    except UnknownValue as error:
        raise error.among(choices_of(followed, error.variable)) from None
    notes = [*followed.notes, *more, *arguments.notes]
    if started is not None:
        job = job_of(started, followed.started, slurm, path, folder, arguments)
        notes += job.notes
    else:
        job.world_size_unknown = f"{path} does not start the job"
        job.environment = {n: v for n, v in followed.exported.items() if v.unknown is None}
        remedy = "name that one, if it reads this file"
        job.gaps = [*followed.gaps, Gap(path, "the script that starts the job", remedy, None, None)]
    job.gaps = [gap for gap in (*job.gaps, *arguments.gaps) if _matters(gap, text)]
    size = job.world_size
    if world_size is not None and size not in (None, world_size):
        notes.append(f"{path} starts the job on {size} GPUs, not on the {world_size} given")
    launch = _launch_of(job, path, notes)
    exported = _exported(job, path, lines)
    settings = _settings(path, arguments, overrides, launch, exported, folder=folder)
    return replace(settings, origin=job.origin)


def _of_hydra(
    followed: Followed,
    path: str,
    lines: Sequence[str],
    slurm: dict[str, str],
    folder: Path,
    overrides: Iterable[str],
) -> tuple[Settings, int] | None:
    """The settings of a launcher that takes Hydra's overrides, and the line of the launch."""
    started = hydra_launch(followed.started)
    if started is None:
        return None
    tree, notes = tree_of_launch(started, path, lines, folder)
    read = reader_of_launch(tree, started)
    if read is None:
        return None
    job = job_of(started, followed.started, slurm, path, folder, Arguments())
    launch = _launch_of(job, path, (*followed.notes, *notes, *job.notes))
    settings = read(tree, tuple(overrides), None, launch)
    exported = _exported(job, path, lines)
    return replace(settings, where={**exported, **settings.where}), started.line


def _launch_of(job: Job, path: str, notes: Sequence[str]) -> Launch:
    """What a script says besides the settings."""
    return Launch(
        {name: value.text for name, value in job.environment.items()},
        path,
        job.world_size,
        job.world_size_unknown,
        tuple(dict.fromkeys(notes)),
        launcher=job.launcher,
        environment_source=job.environment_source,
        unknown=frozenset(job.unknown),
        whole=not any(gap.variables is None for gap in unread(job.gaps)),
        gaps=tuple(dict.fromkeys(job.gaps)),
        origins=job.origins,
    )


_DECIDING = re.compile(r"(CUDA|NCCL|NVTE|UB|TORCH|PYTORCH|TE)_")
"""How the names of the variables begin that rules look at."""


def _matters(gap: Gap, text: str) -> bool:
    """Whether what is not known may change an answer.

    Args:
        gap: what is not known.
        text: the script, which may use a variable that it sets.
    """
    if gap.variables is None or gap.flags is None or any(map(known_flag, gap.flags)):
        return True
    return any(_DECIDING.match(n) or re.search(rf"\$\{{?{n}\b", text) for n in gap.variables)


def _exported(job: Job, path: str, lines: Sequence[str]) -> dict[str, Place]:
    """The places of the variables that the job has."""
    return {
        f"{ENV}{name}": Place(value.file, value.line)
        if value.file
        else word_place(path, lines, value.line, name)
        for name, value in job.environment.items()
        if value.line
    }


def read_megatron_lm_arguments(
    arguments: Sequence[str], *, overrides: Iterable[str] = (), allow_unknown: bool = False
) -> Settings:
    """The settings in Megatron-LM's arguments.

    Args:
        arguments: those of `pretrain_gpt.py`, with or without a launch line before them.
        overrides: ``section.key=value``, applied last.
        allow_unknown: whether a flag that looks like a misspelt one is passed over.

    Raises:
        InputError: as `read_megatron_lm`.
    """
    words = tuple(Field((Piece(encodable(text), 0, quoted=True),)) for text in arguments)
    started = Started(words, (), {}, {}, 0)
    if not is_launch(started):
        raise InputError(f"{ARGUMENTS}: contain no flag of Megatron-LM that is known here")
    read = _read(started, ARGUMENTS, None, allow_unknown, Path())
    job = job_of(started, (started,), {}, ARGUMENTS, Path(), read)
    size, unknown = job.world_size, f"{ARGUMENTS} do not say how many GPUs the job uses"
    exported = {f"{ENV}{name}": Place(None, argument=name) for name in job.environment}
    variables = {name: value.text for name, value in job.environment.items()}
    unknown = "" if size is not None else unknown
    gaps = tuple(dict.fromkeys(read.gaps))
    launch = Launch(
        variables, None, size, unknown, tuple(read.notes), launcher=job.launcher, gaps=gaps
    )
    settings = _settings(ARGUMENTS, read, overrides, launch, exported, folder=Path())
    return replace(settings, origin=job.origin)


def _read(
    started: Started, path: str, lines: Sequence[str] | None, allow_unknown: bool, folder: Path
) -> Arguments:
    """The arguments of a launch, as its program spells them.

    Raises:
        InputError: as `read_arguments`; or the program hands the training to DeepSpeed.
    """
    words = split_launch(started)[1]
    if is_deepspeed(words):
        where = f"{path}:{started.line}" if started.line else path
        raise refusal(words, where, folder)
    dialect = dialect_of(started, words)
    return read_arguments(words, path, lines, allow_unknown=allow_unknown, dialect=dialect)


def _named(script: str) -> tuple[str, int | None]:
    """A file, and the line after its name."""
    name, _, line = script.rpartition(":")
    if name and line.isdecimal() and len(line) < 8 and not exists(script):
        return name, int(line)
    return script, None


def _checked(variables: Mapping[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if _NAME.fullmatch(name) is None:
            raise InputError(f"{name}={value}: {name!r} is not the name of a shell variable")
    return dict(variables)


def _chosen(
    followed: Followed,
    path: str,
    lines: Sequence[str],
    wanted: int | None,
    allow_unknown: bool,
    folder: Path,
) -> tuple[Started | None, Arguments, list[str]]:
    """The launch of the job, its arguments, and notes on the choice."""
    launches = [started for started in followed.started if is_launch(started)]
    if any(is_launch(started) >= _FEW_FLAGS for started in launches):
        launches = [started for started in launches if is_launch(started) >= _FEW_FLAGS]
    if wanted is not None:
        at = [s for s in launches if wanted in (0 if s.file else s.line, *s.calls)]
        if not at:
            others = ", ".join(map(str, _lines_of(launches))) or "none"
            raise InputError(f"{path}:{wanted}: starts no Megatron-LM job; lines that do: {others}")
        # A loop starts the same line again.
        launches = at if len(set(_lines_of(at))) > 1 else at[-1:]
    if not launches:
        ask_for_arguments(followed.started, path)
        ask_for_branch(followed, path, lines)
        return None, *without_launch(followed, path, lines, allow_unknown)
    read = [_read(started, path, lines, allow_unknown, folder) for started in launches]
    if any(each.values != read[0].values for each in read[1:]):
        starts = _lines_of(launches)
        raise SeveralLaunches(
            f"{path}: starts Megatron-LM {len(starts)} times with different arguments (lines "
            f"{', '.join(map(str, starts))}); select one, such as {path}:{starts[0]}",
            tuple(starts),
        )
    return launches[0], read[0], []


def _lines_of(launches: Sequence[Started]) -> list[int]:
    """A line for each launch: its own, or where one line starts several, that of the call."""
    lines = [s.calls[-1] if s.file and s.calls else s.line for s in launches]
    for depth in range(1, 1 + max((len(started.calls) for started in launches), default=0)):
        shared = {line for line in lines if lines.count(line) > 1}
        lines = [
            started.calls[-depth] if line in shared and len(started.calls) >= depth else line
            for started, line in zip(launches, lines, strict=True)
        ]
    return lines


def _settings(
    path: str,
    arguments: Arguments,
    overrides: Iterable[str],
    launch: Launch,
    exported: Mapping[str, Place],
    *,
    folder: Path,
) -> Settings:
    notes = list(launch.notes)
    data: dict[str, Any] = {"model": {}, "ddp": {}}
    cfg = "model.tp_comm_overlap_cfg"
    values = dict(arguments.values)
    if cfg in values:
        values[cfg], remarks = _userbuffers(values[cfg], folder)
        notes += remarks
    for dotted, value in {**arguments.defaults, **values}.items():
        section, _, key = dotted.partition(".")
        data.setdefault(section, {})[key] = value
    places = {tuple(dotted.split(".")): place for dotted, place in arguments.where.items()}
    settings = read_settings(Document(path, data, places), _overrides(overrides, data))
    asked = frozenset(values) | settings.overridden
    launch = replace(
        launch,
        notes=tuple(dict.fromkeys(notes)),
        flags=tuple(arguments.versions),
        unread=tuple(arguments.unknown),
        passed=arguments.places,
        others=tuple(arguments.others),
        underscores=arguments.dashes < 0,
    )
    stacks = stacks_with(flag.versions for flag in arguments.versions)
    return replace(
        settings,
        asked=asked,
        where={**exported, **settings.where},
        framework="megatron-lm",
        launch=launch,
        stacks=stacks,
    )


def _overrides(texts: Iterable[str], data: dict[str, Any]) -> list[Override]:
    parsed = []
    for text in texts:
        override = parse_override(text, data)
        if override.section in _BRIDGE_ONLY:
            raise InputError(
                f"{text}: Megatron-LM has no {override.section}; override model, ddp or optimizer"
            )
        parsed.append(override)
    return parsed


def _userbuffers(name: str, folder: Path) -> tuple[Any, list[str]]:
    """The content of the file of --tp-comm-overlap-cfg, where that exists here."""
    for path in (Path(name), folder / name):
        try:
            exists_here = path.is_file()
        except (OSError, ValueError):
            exists_here = False
        if exists_here:
            return read_yaml(path).data, []
    return name, [
        f"--tp-comm-overlap-cfg {name[:80]}: there is no such file here, so it is not checked"
    ]
