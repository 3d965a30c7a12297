"""One way in: turns what the user named into settings."""

from __future__ import annotations

import re
from pathlib import Path

from overlapkit.config.overrides import is_override, parse_override
from overlapkit.config.run import LARGEST, Settings, read_settings
from overlapkit.config.yaml_file import read_yaml
from overlapkit.errors import InputError

_LAUNCHER = re.compile(r"(^|/)(torchrun|python[\d.]*|srun|mpirun|mpiexec|deepspeed|env)$|^\w+=")


def read_yaml_settings(path: str, overrides: list[str]) -> Settings:
    """The settings of a YAML, with ``section.key=value`` on top."""
    if path.endswith((".sh", ".bash", ".slurm", ".sbatch")):
        raise InputError(f"{path}: a launch script is read with --from-megatron-lm")
    document = read_yaml(path)
    return read_settings(document, [parse_override(text, document.data) for text in overrides])


def read_script(path: str, texts: list[str]) -> Settings:
    """The settings of a launch script; NAME=value gives a variable, a dotted key an override."""
    from overlapkit.config.megatron_lm.script import read_megatron_lm

    overrides = [text for text in texts if _is_dotted(text)]
    variables = dict(text.split("=", 1) for text in texts if not _is_dotted(text))
    return read_megatron_lm(path, variables, overrides=overrides)


def read_arguments(before: list[str], arguments: list[str]) -> Settings:
    """The settings of Megatron-LM's arguments, with overrides in front of them."""
    from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments

    own = [text for text in before if is_override(text) and _is_dotted(text)]
    # A launcher in front of the flags tells the number of GPUs.
    launcher = [text for text in before if text not in own]
    for text in launcher[:1]:
        if Path(text).is_file() or not _LAUNCHER.search(text):
            raise InputError(
                f"{text}: before Megatron-LM's arguments only section.key=value or a launcher may "
                "stand; give a script or its arguments, not both"
            )
    return read_megatron_lm_arguments([*launcher, *arguments], overrides=own)


def _is_dotted(override: str) -> bool:
    return "." in override.partition("=")[0] or override.startswith(("+", "~"))


def world_sizes_of(given: tuple[int, ...], settings: list[Settings]) -> list[int]:
    """One number of GPUs for each of the settings: as given, else as their launch script tells."""
    for size in given:
        if not 1 <= size <= LARGEST:
            raise InputError(f"--world-size {size}: must be from 1 to {LARGEST}")
    if len(given) > len(settings):
        raise InputError("--world-size is given more often than there are configurations")
    if given:
        return [given[0], given[-1]][: len(settings)]
    sizes = []
    for each in settings:
        told = each.launch.world_size if each.launch is not None else None
        if told is None:
            why = f": {each.launch.world_size_unknown}" if each.launch is not None else ""
            raise InputError("--world-size N is missing: the number of GPUs of the job" + why)
        if told > LARGEST:
            raise InputError(f"{each.source}: starts {told} processes; at most {LARGEST} are taken")
        sizes.append(told)
    return sizes
