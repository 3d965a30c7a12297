"""The command `overlapkit explain`."""

from __future__ import annotations

import sys

from overlapkit.config.run import Settings
from overlapkit.config.sources import read_sources, world_sizes_of
from overlapkit.errors import EXIT_FINDING
from overlapkit.explain.assumptions import assume
from overlapkit.explain.document import explain_document
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.output.console import write_json, write_text


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
    settings = read_sources(
        (config, *more), command="explain", from_megatron_lm=from_megatron_lm, most=2
    )
    sizes = world_sizes_of(settings, world_sizes)
    assumptions = assume(gpu, te, env_file)
    if len(settings) == 1:
        return _explain_one(settings[0], sizes[0], assumptions, as_json=as_json)
    return _compare(settings, sizes, assumptions, as_json=as_json)


def _explain_one(
    settings: Settings, world_size: int, assumptions: Assumptions, *, as_json: bool
) -> int:
    report = explain(settings, world_size, assumptions)
    if as_json:
        write_json(explain_document(report))
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
    from overlapkit.explain.document import difference_document
    from overlapkit.output.console import console

    difference = find_difference(settings, sizes, assumptions)
    if as_json:
        write_json(difference_document(difference))
    else:
        show_difference(difference, console())
    return EXIT_FINDING if difference.after.findings else 0
