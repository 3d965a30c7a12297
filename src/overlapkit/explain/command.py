"""The command `overlapkit explain`."""

from __future__ import annotations

import sys
from pathlib import Path

from overlapkit.config.overrides import is_override
from overlapkit.config.run import Settings
from overlapkit.config.schema import sections
from overlapkit.config.sources import (
    read_arguments,
    read_script,
    read_yaml_settings,
    world_sizes_of,
)
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.document import report_json
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.output.console import write_json, write_text

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
            given = read_arguments(arguments[:flags], arguments[flags:])
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
    sizes = world_sizes_of(world_sizes, settings)
    return _compare(settings, sizes, assumptions, as_json=as_json)


def _explain_one(
    settings: Settings, world_sizes: tuple[int, ...], assumptions: Assumptions, *, as_json: bool
) -> int:
    (size,) = world_sizes_of(world_sizes, [settings])
    report = explain(settings, size, assumptions)
    if as_json:
        write_json(report_json(report))
    else:
        _show(report)
    return EXIT_FINDING if report.findings else 0


def _show(report: Report) -> None:
    if sys.stdout.isatty():
        from overlapkit.explain.tables import show_report
        from overlapkit.output.console import console

        show_report(report, console())
    else:
        from overlapkit.explain.text import report_lines

        write_text("".join(f"{line}\n" for line in report_lines(report)))


def _compare(
    settings: list[Settings], sizes: list[int], assumptions: Assumptions, *, as_json: bool
) -> int:
    from overlapkit.explain.difference import find_difference
    from overlapkit.explain.difference_tables import show_difference
    from overlapkit.explain.document import difference_json
    from overlapkit.output.console import console

    difference = find_difference(settings, sizes, assumptions)
    if as_json:
        write_json(difference_json(difference))
    else:
        show_difference(difference, console())
    return EXIT_FINDING if difference.after.findings else 0
