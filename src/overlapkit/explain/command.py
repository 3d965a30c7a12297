"""The command `overlapkit explain`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from overlapkit.config.overrides import is_override, parse_override
from overlapkit.config.run import LARGEST, Settings, read_settings
from overlapkit.config.schema import sections
from overlapkit.config.yaml_file import read_yaml
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Assumptions, Report, explain, report_json
from overlapkit.output import write_json, write_text

_LAUNCHER = re.compile(r"(^|/)(torchrun|python[\d.]*|srun|mpirun|mpiexec|deepspeed|env)$|^\w+=")
SECOND = "b:"
"""Marks an override of the second configuration alone."""


def run(
    config: str,
    more: tuple[str, ...],
    world_sizes: tuple[int, ...],
    *,
    gpu: str | None,
    te: str,
    env_file: str | None,
    as_json: bool,
    from_megatron_lm: bool = False,
) -> int:
    """Explain one configuration, or the difference of two; returns the exit status.

    Args:
        from_megatron_lm: `config` is a launch script of Megatron-LM, or its arguments begin there.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    if from_megatron_lm:
        flags = next((n for n, text in enumerate((config, *more)) if text.startswith("-")), None)
        if flags is not None:
            arguments = [config, *more]
            given = _from_arguments(arguments[:flags], arguments[flags:])
            return _explain_one(given, world_sizes, assume(gpu, te, env_file), as_json=as_json)
    elif config.startswith("-"):
        raise InputError(
            f"{config}: for Megatron-LM's arguments write --from-megatron-lm -- {config}"
        )
    if is_override(config) and not Path(config).exists():
        raise InputError(f"{config}: an override comes after the configuration file")
    others = [argument for argument in more if not is_override(argument)]
    overrides = [argument for argument in more if is_override(argument)]
    of_second = [text.removeprefix(SECOND) for text in overrides if text.startswith(SECOND)]
    overrides = [text for text in overrides if not text.startswith(SECOND)]
    for other in others:
        if other.partition(".")[0] in sections() and not Path(other).exists():
            raise InputError(f"{other}: an override has a value: write {other}=VALUE")
    if len(others) > 1:
        raise InputError(f"{others[1]}: explain takes one configuration, or two to compare")
    if of_second and not others:
        others = [config]
    assumptions = assume(gpu, te, env_file)
    read = read_script if from_megatron_lm else read_yaml_settings
    settings = [read(config, overrides)]
    if not others:
        return _explain_one(settings[0], world_sizes, assumptions, as_json=as_json)
    settings += [read(path, overrides + of_second) for path in others]
    sizes = _world_sizes(world_sizes, settings)
    return _compare(settings, sizes, assumptions, as_json=as_json)


def _explain_one(
    settings: Settings, world_sizes: tuple[int, ...], assumptions: Assumptions, *, as_json: bool
) -> int:
    (size,) = _world_sizes(world_sizes, [settings])
    report = explain(settings, size, assumptions)
    if as_json:
        write_json(report_json(report))
    else:
        _show(report)
    return EXIT_FINDING if report.findings else 0


def _show(report: Report) -> None:
    if sys.stdout.isatty():
        from overlapkit.explain.render import show_report
        from overlapkit.output import console

        show_report(report, console())
    else:
        from overlapkit.explain.lines import report_lines

        write_text("".join(f"{line}\n" for line in report_lines(report)))


def _compare(
    settings: list[Settings], sizes: list[int], assumptions: Assumptions, *, as_json: bool
) -> int:
    from overlapkit.explain.difference import find_difference
    from overlapkit.explain.difference_view import difference_json, show_difference
    from overlapkit.output import console

    difference = find_difference(settings, sizes, assumptions)
    if as_json:
        write_json(difference_json(difference))
    else:
        show_difference(difference, console())
    return EXIT_FINDING if difference.after.findings else 0


def read_yaml_settings(path: str, overrides: list[str]) -> Settings:
    """The settings of a YAML, with ``section.key=value`` on top."""
    if path.endswith((".sh", ".bash", ".slurm", ".sbatch")):
        raise InputError(f"{path}: a launch script is read with --from-megatron-lm")
    document = read_yaml(path)
    return read_settings(document, [parse_override(text, document.data) for text in overrides])


def read_script(path: str, texts: list[str]) -> Settings:
    """The settings of a launch script; NAME=value gives a variable, a dotted key an override."""
    from overlapkit.config.megatron_lm import read_megatron_lm

    overrides = [text for text in texts if _is_dotted(text)]
    variables = dict(text.split("=", 1) for text in texts if not _is_dotted(text))
    return read_megatron_lm(path, variables, overrides=overrides)


def _from_arguments(before: list[str], arguments: list[str]) -> Settings:
    """The settings of Megatron-LM's arguments, with overrides in front of them."""
    from overlapkit.config.megatron_lm import read_megatron_lm_arguments

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


def _world_sizes(given: tuple[int, ...], settings: list[Settings]) -> list[int]:
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
