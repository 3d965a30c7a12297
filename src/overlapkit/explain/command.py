"""The command `overlapkit explain`."""

from __future__ import annotations

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
) -> int:
    """Explain one configuration, or the difference of two; returns the exit status.

    Raises:
        InputError: see `overlapkit.errors`.
    """
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
    sizes = _world_sizes(world_sizes, compared=bool(others))
    assumptions = assume(gpu, te, env_file)
    settings = [_settings(config, overrides)]
    settings += [_settings(path, overrides + of_second) for path in others]
    if others:
        return _compare(settings, sizes, assumptions, as_json=as_json)
    report = explain(settings[0], sizes[0], assumptions)
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


def _settings(path: str, overrides: list[str]) -> Settings:
    document = read_yaml(path)
    return read_settings(document, [parse_override(text, document.data) for text in overrides])


def _world_sizes(given: tuple[int, ...], *, compared: bool) -> list[int]:
    if not given:
        raise InputError("--world-size N is missing: the number of GPUs of the job")
    for size in given:
        if not 1 <= size <= LARGEST:
            raise InputError(f"--world-size {size}: must be from 1 to {LARGEST}")
    if len(given) > (2 if compared else 1):
        raise InputError("--world-size is given more often than there are configurations")
    return [given[0], given[-1]]
