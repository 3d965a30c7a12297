"""The command `overlapkit explain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.config.reading import Reading
from overlapkit.config.sources import read_sources, world_sizes_of
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Report, explain
from overlapkit.output.console import write_json, write_text

if TYPE_CHECKING:
    from overlapkit.explain.difference import Difference
    from overlapkit.output.files import Output


def run(
    *,
    arguments: Sequence[str],
    world_sizes: Sequence[int],
    gpu: str | None,
    te: str | None,
    reading: Reading,
    env_file: str | None,
    as_json: bool,
    html: str | None,
    from_megatron_lm: bool,
    buckets: bool = False,
) -> int:
    """Explain one configuration, or the difference of two; returns the exit status.

    Args:
        arguments: one or two configurations, and overrides; see `config.sources.name_sources`.
        world_sizes: GPUs of the job, of each of two, or none where launch scripts state them.
        reading: for which versions and how strictly they are read.
        gpu, te, env_file: see `explain.assumptions.assume`.
        as_json: whether to print the JSON document instead of text.
        html: file for the page; None for none.
        from_megatron_lm: the configurations are launch scripts of Megatron-LM, or its arguments.
        buckets: whether to print the gradient buckets instead of the decisions.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    page = None if html is None else _page(html, arguments, env_file)
    settings = read_sources(
        arguments,
        command="explain",
        from_megatron_lm=from_megatron_lm,
        most=2,
        reading=reading,
    )
    if buckets and len(settings) > 1:
        raise InputError("--buckets takes one configuration: name one, or leave --buckets out")
    sizes = world_sizes_of(settings, world_sizes)
    assumptions = assume(gpu, te, env_file, installation=reading.installation)
    if len(settings) == 1:
        report = explain(settings[0], sizes[0], assumptions)
        _show_report(report, page, as_json=as_json, buckets=buckets)
    else:
        from overlapkit.explain.difference import find_difference

        difference = find_difference(settings, sizes, assumptions)
        report = difference.after
        _show_difference(difference, page, as_json=as_json)
    return EXIT_FINDING if report.findings else 0


def _page(html: str, arguments: Sequence[str], env_file: str | None) -> Output | None:
    # Imported here: most runs write no page.
    from overlapkit.output.files import outputs

    # A launch script can be given with a line: FILE:LINE.
    files = [*arguments, *(text.rpartition(":")[0] for text in arguments), env_file or ""]
    return outputs({"--html": html}, files)[0]


def _show_report(report: Report, page: Output | None, *, as_json: bool, buckets: bool) -> None:
    if page is not None:
        from overlapkit.explain.page import explain_page

        page.write(explain_page(report))
    if as_json:
        from overlapkit.explain.document import explain_document

        write_json(explain_document(report))
    elif sys.stdout.isatty():
        from overlapkit.explain.tables import show_buckets, show_report
        from overlapkit.output.console import console

        show = show_buckets if buckets else show_report
        show(report, console())
    else:
        from overlapkit.explain.text import buckets_lines, report_lines

        lines = buckets_lines if buckets else report_lines
        write_text("".join(f"{line}\n" for line in lines(report)))


def _show_difference(difference: Difference, page: Output | None, *, as_json: bool) -> None:
    if page is not None:
        from overlapkit.explain.page import difference_page

        page.write(difference_page(difference))
    if as_json:
        from overlapkit.explain.document import difference_document

        write_json(difference_document(difference))
    elif sys.stdout.isatty():
        from overlapkit.explain.tables import show_difference
        from overlapkit.output.console import console

        show_difference(difference, console())
    else:
        from overlapkit.explain.text import difference_lines

        write_text("".join(f"{line}\n" for line in difference_lines(difference)))
