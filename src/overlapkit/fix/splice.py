"""Changes of a text at known places; everything outside of them stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class CannotEdit(Exception):
    """Why a change cannot be made in a file, as a clause without a period."""


@dataclass(frozen=True)
class Splice:
    """New characters in the place of those from `start` up to but not including `end`."""

    start: int
    end: int
    text: str


def spliced(text: str, splices: Iterable[Splice]) -> str:
    """A text with splices that do not overlap."""
    parts, at = [], 0
    for each in sorted(splices, key=lambda s: (s.start, s.end)):
        parts += [text[at : each.start], each.text]
        at = each.end
    return "".join([*parts, text[at:]])


def line_start(text: str, at: int) -> int:
    """Where the line of a character begins."""
    return text.rfind("\n", 0, at) + 1


def line_end(text: str, at: int) -> int:
    """Where the line of a character ends: at its line break, or at the end of the text."""
    found = text.find("\n", at)
    if found < 0:
        return len(text)
    return found - 1 if found > at and text[found - 1] == "\r" else found


def next_line(text: str, at: int) -> int:
    """Where the line after that of a character begins; the end of the text where there is none."""
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def line_break(text: str) -> str:
    """The line break of a text: that of its first line."""
    found = text.find("\n")
    return "\r\n" if found > 0 and text[found - 1] == "\r" else "\n"


def indentation(text: str, at: int) -> str:
    """The blanks at the start of the line of a character."""
    start = line_start(text, at)
    rest = text[start : line_end(text, start)]
    return rest[: len(rest) - len(rest.lstrip(" \t"))]
