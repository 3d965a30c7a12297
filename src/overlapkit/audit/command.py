"""The command `overlapkit audit`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from overlapkit.audit.audit import Audit, audit
from overlapkit.config.reading import Reading
from overlapkit.errors import EXIT_FINDING
from overlapkit.explain.assumptions import assume
from overlapkit.explain.lint.linted import Form
from overlapkit.output.console import write_json, write_text


def run(
    *,
    paths: Sequence[str],
    world_size: int | None,
    pass_over: bool,
    gpu: str | None,
    te: str | None,
    reading: Reading,
    env_file: str | None,
    form: Form,
) -> int:
    """Judge every configuration below the paths; returns the exit status.

    Args:
        paths: folders and files.
        world_size: GPUs of the jobs whose files do not state them.
        pass_over: whether a named file that has nothing to do with a Megatron run is passed over.
        gpu, te, env_file: see `explain.assumptions.assume`.
        reading: for which versions and how strictly they are read.
        form: what is printed: text, the JSON document, GitHub's annotations, or SARIF.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    assumptions = assume(gpu, te, env_file, installation=reading.installation)
    answer = audit(paths, world_size, assumptions, reading, pass_over=pass_over)
    _show(answer, form)
    return EXIT_FINDING if answer.fails else 0


def _show(answer: Audit, form: Form) -> None:
    if form == "json":
        from overlapkit.audit.document import audit_document

        write_json(audit_document(answer))
    elif form == "sarif":
        from overlapkit.explain.lint.sarif import sarif_log

        write_json(sarif_log([each.linted for each in answer.audited]))
    elif form == "github":
        from overlapkit.explain.lint.github import workflow_commands

        commands = workflow_commands(each.linted for each in answer.audited)
        write_text("".join(f"{command}\n" for command in commands))
    elif sys.stdout.isatty():
        from overlapkit.audit.tables import show_audit
        from overlapkit.output.console import console

        show_audit(answer, console())
    else:
        from overlapkit.audit.text import audit_lines

        write_text("".join(f"{line}\n" for line in audit_lines(answer)))
