"""Where a user set something: a place in a file, or an argument of the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a setting is.

    Attributes:
        file: the file, as the user named it; None for an argument of the command line.
        line: of the key, flag or export, from 1; None where it is not known.
        column: its first character in that line, from 1; None where it is not known.
        argument: the override or flag on the command line; None for a place in a file.
    """

    file: str | None
    line: int | None = None
    column: int | None = None
    argument: str | None = None

    @property
    def in_messages(self) -> str:
        """``file:line``, or the argument: as messages about wrong input begin."""
        if self.argument is not None:
            return self.argument
        return f"{self.file}:{self.line}" if self.line else f"{self.file}"

    def __str__(self) -> str:
        """``file:line:column``, or the argument."""
        if self.argument is None and self.line and self.column:
            return f"{self.file}:{self.line}:{self.column}"
        return self.in_messages


def in_messages(where: Mapping[str, Place], key: str, otherwise: str) -> str:
    """The start of a message about a key: its place, or the name of the entire input."""
    place = where.get(key)
    return otherwise if place is None else place.in_messages


def word_place(path: str, lines: Sequence[str], line: int, word: str) -> Place:
    """The place of a word of a script.

    Args:
        path: the script.
        lines: its lines.
        line: the line that the word is on, from 1; 0 where that is not known.
        word: as it is written there. A word that an expansion put together is not in the line:
            its column is not known.
    """
    if not 0 < line <= len(lines):
        return Place(path)
    found = re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", lines[line - 1])
    return Place(path, line, found.start() + 1 if found else None)
