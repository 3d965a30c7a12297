"""The command `overlapkit explain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.config.reading import Reading
from overlapkit.config.sources import read_sources, world_sizes_of
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.lint.linted import LINT_FORMS, Form, linted
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
    form: Form,
    html: str | None,
    from_megatron_lm: bool,
    buckets: bool = False,
    brief: bool = False,
) -> int:
    """Explain one configuration, or the difference of two; returns the exit status.

    Args:
        arguments: one or two configurations, and overrides; see `config.sources.name_sources`.
        world_sizes: GPUs of the job, of each of two, or none where launch scripts state them.
        reading: for which versions and how strictly they are read.
        gpu, te, env_file: see `explain.assumptions.assume`.
        form: what is printed: text, the JSON document, GitHub's annotations, or SARIF.
        html: file for the page; None for none.
        from_megatron_lm: the configurations are launch scripts of Megatron-LM, or its arguments.
        buckets: whether to print the gradient buckets instead of the decisions.
        brief: whether the text is the verdict and the findings alone.

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
    _check_form(form, len(settings), buckets=buckets, brief=brief)
    sizes = world_sizes_of(settings, world_sizes)
    assumptions = assume(gpu, te, env_file, installation=reading.installation)
    if len(settings) == 1:
        report = explain(settings[0], sizes[0], assumptions)
        _write_page(report, page)
        _show_report(report, form, buckets=buckets, brief=brief)
    else:
        from overlapkit.explain.difference import find_difference

        difference = find_difference(settings, sizes, assumptions)
        report = difference.after
        _show_difference(difference, page, as_json=form == "json")
    return EXIT_FINDING if report.findings else 0


def _page(html: str, arguments: Sequence[str], env_file: str | None) -> Output | None:
    # Imported here: most runs write no page.
    from overlapkit.output.files import outputs

    # A launch script can be given with a line: FILE:LINE.
    files = [*arguments, *(text.rpartition(":")[0] for text in arguments), env_file or ""]
    return outputs({"--html": html}, files)[0]


def _check_form(form: Form, configurations: int, *, buckets: bool, brief: bool) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: which ones, and what to leave out.
    """
    for option, given in (("--buckets", buckets), ("--brief", brief)):
        if given and configurations > 1:
            raise InputError(f"{option} takes one configuration: name one, or leave {option} out")
    if form in LINT_FORMS and configurations > 1:
        raise InputError(f"--format {form} takes one configuration: name one, or use --format json")
    if brief and (form != "text" or buckets):
        other = "--buckets" if buckets else f"--format {form}"
        raise InputError(f"--brief shortens the report as text: leave it or {other} out")
    if buckets and form in LINT_FORMS:
        raise InputError(f"--buckets has no form {form}: use --format text or json")


def _write_page(report: Report, page: Output | None) -> None:
    if page is not None:
        from overlapkit.explain.page import explain_page

        page.write(explain_page(report))


def _show_report(report: Report, form: Form, *, buckets: bool, brief: bool) -> None:
    if form == "json":
        from overlapkit.explain.document import explain_document

        write_json(explain_document(report))
    elif form == "sarif":
        from overlapkit.explain.lint.sarif import sarif_log

        write_json(sarif_log([linted(report)]))
    elif form == "github":
        from overlapkit.explain.lint.github import workflow_commands

        commands = workflow_commands([linted(report)])
        write_text("".join(f"{command}\n" for command in commands))
    elif sys.stdout.isatty():
        from overlapkit.explain.tables import show_buckets, show_report
        from overlapkit.output.console import console

        if buckets:
            show_buckets(report, console())
        else:
            show_report(report, console(), brief=brief)
    else:
        from overlapkit.explain.text import brief_lines, buckets_lines, report_lines

        lines = buckets_lines if buckets else brief_lines if brief else report_lines
        write_text("".join(f"{line}\n" for line in lines(report)))


def _show_difference(difference: Difference, page: Output | None, *, as_json: bool) -> None:
    if page is not None:
        from overlapkit.explain.page import difference_page

        page.write(difference_page(difference))
    if as_json:
        from overlapkit.explain.difference_document import difference_document

        write_json(difference_document(difference))
    elif sys.stdout.isatty():
        from overlapkit.explain.tables import show_difference
        from overlapkit.output.console import console

        show_difference(difference, console())
    else:
        from overlapkit.explain.difference_text import difference_lines

        write_text("".join(f"{line}\n" for line in difference_lines(difference)))
