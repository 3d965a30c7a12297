"""The command `overlapkit explain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from overlapkit.config.run import Settings
from overlapkit.config.sources import read_sources, world_sizes_of
from overlapkit.errors import EXIT_FINDING
from overlapkit.explain.assumptions import assume
from overlapkit.explain.document import explain_document
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.output.console import write_json, write_text


def run(
    *,
    arguments: Sequence[str],
    world_sizes: Sequence[int],
    gpu: str | None,
    te: str,
    env_file: str | None,
    as_json: bool,
    from_megatron_lm: bool,
) -> int:
    """Explain one configuration, or the difference of two; returns the exit status.

    Args:
        arguments: one or two configurations, and overrides; see `config.sources.name_sources`.
        world_sizes: GPUs of the job, of each of two, or none where launch scripts state them.
        gpu, te, env_file: see `explain.assumptions.assume`.
        from_megatron_lm: the configurations are launch scripts of Megatron-LM, or its arguments.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    settings = read_sources(arguments, command="explain", from_megatron_lm=from_megatron_lm, most=2)
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
