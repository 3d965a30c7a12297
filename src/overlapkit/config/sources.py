"""One way in: turns what the user named on the command line into settings.

A command's arguments name a configuration (a YAML file, a Megatron-LM launch script, or
Megatron-LM's own arguments), perhaps a second one to compare it with, and overrides. Every command
reads them here, so that the same arguments mean the same and the same mistake gets the same
message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from overlapkit.config.file_kind import is_script, kind_of
from overlapkit.config.overrides import is_override, parse_override
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.schema import sections
from overlapkit.config.sizes import LARGEST
from overlapkit.config.text_file import exists
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.errors import InputError

_BRIDGE_ONLY = ("comm_overlap", "mixed_precision")
"""Sections that a run of Megatron-LM does not have."""

SECOND = "b:"
"""Marks an override of the second configuration alone."""

# Compiled at its first use, not at import.
_LAUNCHER = r"(^|/)(torchrun|python[\d.]*|srun|mpirun|mpiexec|deepspeed|env|ray|megatron)$|^\w+="


@dataclass(frozen=True)
class Source:
    """One configuration as the user named it; not read yet.

    Attributes:
        kind: a YAML file, a launch script of Megatron-LM, or Megatron-LM's arguments.
        name: the file; ``FILE:LINE`` for one of several launches in a script. Empty for arguments.
        given: overrides ``section.key=value``, and for a script also variables ``NAME=value``.
        arguments: Megatron-LM's arguments, after their launcher where one was given.
    """

    kind: Literal["yaml", "script", "arguments"]
    name: str
    given: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def read(self, reading: Reading | None = None) -> Settings:
        """The settings in it, with the overrides applied.

        Args:
            reading: for which versions and how strictly it is read.

        Raises:
            InputError: it cannot be read, or contains a key or value that no run can have.
        """
        reading = reading or Reading()
        if self.kind == "yaml":
            return read_document(document_of(self.name), self.given, reading)
        # Imported here: most runs read a YAML file.
        from overlapkit.config.megatron_lm.script import (
            read_megatron_lm,
            read_megatron_lm_arguments,
        )

        overrides = [text for text in self.given if _is_dotted(text)]
        if self.kind == "arguments":
            read = read_megatron_lm_arguments(
                self.arguments, overrides=overrides, allow_unknown=reading.allow_unknown
            )
            return reading.dated(read)
        variables = dict(text.split("=", 1) for text in self.given if not _is_dotted(text))
        read = read_megatron_lm(
            self.name, variables, overrides=overrides, allow_unknown=reading.allow_unknown
        )
        return reading.dated(read)


def document_of(name: str) -> Document:
    """The document in a file of settings.

    Raises:
        InputError: as `read_yaml`; or the file is in another language, which is named.
    """
    from overlapkit.config.launchers.others import refuse_by_name

    refuse_by_name(name)
    return read_yaml(name)


def read_document(
    document: Document, overrides: Sequence[str] = (), reading: Reading | None = None
) -> Settings:
    """The settings in a document, with overrides ``section.key=value`` applied.

    Args:
        reading: for which versions and how strictly it is read.

    Raises:
        InputError: a key or value that no run can have.
    """
    # Imported here: it reads the settings as this does.
    from overlapkit.config.launchers.detect import read_of_launcher

    found = read_of_launcher(document, overrides, reading)
    if found is not None:
        return found
    allowed = reading is not None and reading.allow_unknown
    parsed = [parse_override(text, document.data, allow_unknown=allowed) for text in overrides]
    return read_settings(document, parsed, reading)


def read_sources(
    arguments: Sequence[str],
    *,
    command: str,
    from_megatron_lm: bool = False,
    most: Literal[1, 2] = 1,
    reading: Reading | None = None,
) -> list[Settings]:
    """The settings of every configuration that a command's arguments name; see `name_sources`.

    Args:
        reading: for which versions and how strictly they are read.

    Raises:
        InputError: as `name_sources`, and whatever reading them raises.
    """
    named = name_sources(arguments, command=command, from_megatron_lm=from_megatron_lm, most=most)
    return [source.read(reading) for source in named]


def name_sources(
    arguments: Sequence[str],
    *,
    command: str,
    from_megatron_lm: bool = False,
    most: Literal[1, 2] = 1,
    spell: Callable[[str], str] = str,
) -> list[Source]:
    """The configurations that a command's arguments name; none where there are no arguments.

    Args:
        arguments: configurations and overrides, as the user gave them. An override marked `SECOND`
            belongs to the second configuration alone; without a second one, to a copy of the first.
        command: the command's name, for messages.
        from_megatron_lm: whether the configurations are launch scripts of Megatron-LM, or
            Megatron-LM's arguments are among `arguments`. Without it, and for a YAML file beside a
            script, each file's name or first lines decide.
        most: how many configurations the command takes.
        spell: writes an override out in full, where the command has short names for keys.

    Raises:
        InputError: too many configurations, an override in the place of one, or Megatron-LM's
            arguments without --from-megatron-lm.
    """
    if not arguments:
        if from_megatron_lm:
            raise InputError(
                "--from-megatron-lm takes one launch script, or Megatron-LM's arguments after --: "
                "name the launch script"
            )
        return []
    flags = next((n for n, text in enumerate(arguments) if text.startswith("-")), None)
    if flags is not None and not from_megatron_lm:
        flag = arguments[flags]
        raise InputError(f"{flag}: for Megatron-LM's arguments write --from-megatron-lm -- {flag}")
    named = len(arguments) if flags is None else flags
    if flags is None and is_override(arguments[0]) and not exists(arguments[0]):
        raise InputError(f"{arguments[0]}: an override comes after the configuration file")
    texts = [spell(text) if is_override(text) else text for text in arguments[:named]]
    # Without flags the first one is a file, whatever its name looks like.
    first, rest = (texts[:1], texts[1:]) if flags is None else ([], texts)
    own = [text for text in rest if text.startswith(SECOND) and is_override(text)]
    texts = [*first, *(text for text in rest if text not in own)]
    if own and most == 1:
        raise InputError(
            f"{own[0]}: {SECOND} marks an override of a second configuration, and {command} takes "
            "one configuration"
        )
    if flags is not None:
        sources = [_arguments(texts, arguments[flags:])]
    else:
        sources = _files(texts, command, from_megatron_lm=from_megatron_lm, most=most)
    if own:
        extra = tuple(text.removeprefix(SECOND) for text in own)
        sources = [
            sources[0],
            replace(sources[-1], given=(*sources[-1].given, *extra)),
        ]
    return sources


def _is_dotted(override: str) -> bool:
    """Whether an override is of a setting; else it gives a script's variable."""
    return "." in override.partition("=")[0] or override.startswith(("+", "~"))


def _is_for(override: str, kind: str) -> bool:
    """Whether an override can be for a configuration of this kind, beside one of another kind.

    A section that only Megatron-Bridge has is for the YAML file, a variable for the script.
    """
    name = override.partition("=")[0].lstrip("+")
    section = name.partition(".")[0]
    if kind == "yaml":
        return "." in name or section in sections()
    return section not in _BRIDGE_ONLY and (name == section) == (section not in sections())


def _arguments(before: list[str], arguments: Sequence[str]) -> Source:
    """Megatron-LM's arguments, with overrides or a launcher in front of them."""
    given = [text for text in before if is_override(text) and _is_dotted(text)]
    # A launcher in front of the flags states the number of GPUs.
    launcher = [text for text in before if text not in given]
    for text in launcher[:1]:
        if exists(text) or not re.search(_LAUNCHER, text):
            raise InputError(
                f"{text}: only section.key=value or a launcher can come before Megatron-LM's "
                "arguments; give a script or its arguments, not both"
            )
    return Source("arguments", "", tuple(given), (*launcher, *arguments))


def _files(
    texts: Sequence[str], command: str, *, from_megatron_lm: bool, most: int
) -> list[Source]:
    """The files among a command's arguments, each with the overrides that are for all of them."""
    first, *more = texts
    overrides = tuple(text for text in more if is_override(text))
    files = [first, *(text for text in more if not is_override(text))]
    for text in files[1:]:
        if text.partition(".")[0] in sections() and not exists(text):
            raise InputError(f"{text}: an override has a value: write {text}=VALUE")
    if len(files) > most:
        takes = "one configuration, or two to compare" if most == 2 else "one configuration"
        raise InputError(f"{files[most]}: {command} takes {takes}; an override is KEY=VALUE")
    kinds = [kind_of(name, "script" if from_megatron_lm else "yaml") for name in files]
    if from_megatron_lm and "script" not in kinds:
        kinds = ["script"] * len(files)
    if len(set(kinds)) == 1:
        given = [overrides] * len(files)
    else:
        given = [tuple(o for o in overrides if _is_for(o, kind)) for kind in kinds]
    return [Source(k, name, g) for k, name, g in zip(kinds, files, given, strict=True)]


def read_configuration(name: str, reading: Reading | None = None) -> Settings:
    """The settings of a file that an option such as --config names.

    Such an option has no --from-megatron-lm beside it, so that the file's name decides: one that
    ends in .sh, .bash, .slurm or .sbatch is a launch script of Megatron-LM, any other is YAML.

    Raises:
        InputError: as `Source.read`.
    """
    if not is_script(name):
        return Source("yaml", name).read(reading)
    from overlapkit.config.megatron_lm.arguments import UnknownValue

    try:
        return Source("script", name).read(reading)
    except UnknownValue as error:
        # Beside such an option there is no NAME=value.
        remedy = f"set {error.variable}" if error.variable else "write the value"
        raise InputError(f"{error.fact}; {remedy} in a copy of the script") from None


def check_world_size(size: int | None, option: str = "--world-size") -> int | None:
    """A number of GPUs as an option gives it, if a job can have it.

    Raises:
        InputError: it is below 1, or larger than any cluster.
    """
    if size is not None and not 1 <= size <= LARGEST:
        raise InputError(f"{option} {size}: must be from 1 to {LARGEST}")
    return size


def world_size_of(settings: Settings, given: int | None, otherwise: int | None = None) -> int:
    """The number of GPUs of a job.

    Args:
        settings: its configuration; a launch script may state the number.
        given: the number that the user gave, which wins.
        otherwise: the number that is taken where neither states one, such as a profile's.

    Raises:
        InputError: nothing states it, or it is not one that a job can have.
    """
    if check_world_size(given) is not None:
        return int(given or 0)
    launch = settings.launch
    size = launch.world_size if launch is not None else None
    if size is not None and size > LARGEST:
        raise InputError(f"{settings.source}: starts {size} processes; at most {LARGEST} are taken")
    size = size or otherwise
    if size is None:
        why = f": {launch.world_size_unknown}" if launch is not None else ""
        raise InputError(f"--world-size N is missing: the number of GPUs of the job{why}")
    return size


def world_sizes_of(settings: Sequence[Settings], given: Sequence[int]) -> list[int]:
    """The number of GPUs for each of one or two configurations.

    Where only one of two states it, as a launch script does, it is for both.

    Args:
        settings: the configurations.
        given: the numbers that the user gave; one is for both.

    Raises:
        InputError: as `world_size_of`; or more numbers than configurations are given.
    """
    for size in given:
        check_world_size(size)
    if len(given) > len(settings):
        raise InputError("--world-size is given more often than there are configurations")
    sizes = [given[0], given[-1]] if given else [None, None]
    stated = [each.launch.world_size for each in settings if each.launch is not None]
    known = {size for size in stated if size is not None}
    other = min(known) if len(known) == 1 else None
    return [world_size_of(each, size, other) for each, size in zip(settings, sizes, strict=False)]
