"""Texts as ``${A#…}``, ``${A/…}`` and ``${A@Q}`` change them."""

from __future__ import annotations

from collections.abc import Callable

from overlapkit.config.shell.expansion.patterns import Pattern


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


_SHOWN = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}


def _quoted(text: str) -> str:
    """A text as ``${A@Q}`` writes it."""
    if any(char in "\n\t\r" for char in text):
        return "$'" + "".join(_SHOWN.get(char, char) for char in text) + "'"
    return "'" + text.replace("'", "'\\''") + "'"


TRANSFORMED: dict[str, Callable[[str], str]] = {
    "Q": _quoted,
    "U": str.upper,
    "L": str.lower,
    "u": _first_upper,
}


def removed(text: str, operator: str, pattern: Pattern) -> str:
    longest = len(operator) == 2
    if operator[0] == "#":
        cut = pattern.prefix(text, longest=longest)
        return text if cut is None else text[cut:]
    cut = pattern.suffix(text, longest=longest)
    return text if cut is None else text[: len(text) - cut]


def replaced(text: str, operator: str, pattern: Pattern, new: str) -> str:
    if operator == "/#":
        cut = pattern.prefix(text, longest=True)
        return text if cut is None else new + text[cut:]
    if operator == "/%":
        cut = pattern.suffix(text, longest=True)
        return text if cut is None else text[: len(text) - cut] + new
    for start, end in reversed(pattern.spans(text, every=operator == "//")):
        text = text[:start] + new + text[end:]
    return text
