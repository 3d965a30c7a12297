"""The command `overlapkit skill check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from overlapkit.errors import EXIT_FINDING
from overlapkit.explain.lint.linted import Form
from overlapkit.output.console import write_json, write_text
from overlapkit.skill.check.check import Checked, check


def run(
    *,
    paths: Sequence[str],
    root: str | None,
    fix: bool,
    collect: bool,
    form: Form,
    everything: bool = False,
) -> int:
    """Check pages against a checkout; returns the exit status.

    Args:
        paths: pages, and folders with them.
        root: the checkout; None for the repository of the first path.
        fix: whether anchors whose lines stand elsewhere are written anew.
        collect: whether promised numbers of tests are compared with what pytest collects.
        form: what is printed: text, the JSON document, GitHub's annotations, or SARIF.
        everything: whether text names what is right too; the other forms have it anyway or never.

    Raises:
        InputError: see `overlapkit.skill.check.check.check`.
    """
    checked = check(paths, root, fix=fix, collect=collect)
    _show(checked, form, everything=everything)
    return EXIT_FINDING if checked.fails else 0


def _show(checked: Checked, form: Form, *, everything: bool) -> None:
    if form == "json":
        from overlapkit.skill.check.document import check_document

        write_json(check_document(checked))
    elif form == "sarif":
        from overlapkit.skill.check.lint import sarif_log

        write_json(sarif_log(checked))
    elif form == "github":
        from overlapkit.skill.check.lint import workflow_commands

        write_text("".join(f"{command}\n" for command in workflow_commands(checked)))
    elif sys.stdout.isatty():
        from overlapkit.output.console import console
        from overlapkit.skill.check.tables import show_check

        show_check(checked, console(), everything=everything)
    else:
        from overlapkit.output.console import encodable
        from overlapkit.skill.check.text import check_lines

        write_text(
            "".join(f"{encodable(line)}\n" for line in check_lines(checked, everything=everything))
        )
