"""Findings as annotations of a workflow of GitHub Actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from overlapkit.explain.lint.linted import Level, Linted, Result, results
from overlapkit.explain.text import LABELS

_COMMANDS: dict[Level, str] = {"error": "error", "warning": "warning", "note": "notice"}


def workflow_commands(linted: Iterable[Linted]) -> Iterator[str]:
    """One workflow command for each finding, note with advice, and file that was not judged.

    GitHub shows each beside its line where `file` is relative to the repository's root.
    """
    for each in linted:
        if each.problem:
            properties = _properties(each.file, each.line, None, "not judged")
            yield _command("error" if each.is_wrong else "notice", properties, each.problem)
        yield from (_annotation(result) for result in results(each))


def _annotation(result: Result) -> str:
    d = result.decision
    title = f"{LABELS[d.outcome]} {result.name} [{d.rule}]"
    properties = _properties(result.file, result.line, result.column, title)
    return _command(_COMMANDS[result.level], properties, result.message)


def _properties(file: str, line: int | None, column: int | None, title: str) -> dict[str, str]:
    """The properties that are known; GitHub takes a line only with a file."""
    found = {"file": file, "line": line if file else None, "col": column if line else None}
    return {**{k: str(v) for k, v in found.items() if v}, "title": title}


def _command(name: str, properties: dict[str, str], message: str) -> str:
    given = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
    return f"::{name} {given}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Text with the characters that would end a command or a property as % and two digits."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
