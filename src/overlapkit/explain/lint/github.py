"""Findings as annotations of a workflow of GitHub Actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from overlapkit.explain.lint.linted import Level, Linted, Result, results
from overlapkit.explain.text import LABELS
from overlapkit.output.workflow import Command, workflow_command

_COMMANDS: dict[Level, Command] = {"error": "error", "warning": "warning", "note": "notice"}


def workflow_commands(linted: Iterable[Linted]) -> Iterator[str]:
    """One workflow command for each finding, note with advice, and file that was not judged."""
    for each in linted:
        if each.problem:
            name: Command = "error" if each.is_wrong else "notice"
            yield workflow_command(
                name, each.problem, title="not judged", file=each.file, line=each.line
            )
        yield from (_annotation(result) for result in results(each))


def _annotation(result: Result) -> str:
    d = result.decision
    return workflow_command(
        _COMMANDS[result.level],
        result.message,
        title=f"{LABELS[d.outcome]} {result.name} [{d.rule}]",
        file=result.file,
        line=result.line,
        column=result.column,
    )
