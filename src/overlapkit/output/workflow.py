"""Workflow commands of GitHub Actions, which become annotations of a pull request.

The form is that of docs.github.com, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

from typing import Literal

Command = Literal["error", "warning", "notice"]


def workflow_command(
    name: Command,
    message: str,
    *,
    title: str,
    file: str = "",
    line: int | None = None,
    column: int | None = None,
) -> str:
    """One annotation, with the properties that are known.

    GitHub shows it beside its line where `file` is relative to the repository's root.

    Args:
        name: how much it matters.
        message: its text.
        title: of the annotation.
        file: that it is about; empty where it is about none.
        line, column: the place in it, from 1; a line without a file is left out.
    """
    found = {"file": file, "line": line if file else None, "col": column if line else None}
    properties = {**{k: str(v) for k, v in found.items() if v}, "title": title}
    given = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
    return f"::{name} {given}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Text with the characters that would end a command or a property as % and two digits."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
