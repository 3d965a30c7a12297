"""Regular expressions of ``[[ text =~ expression ]]``, where Python reads them likewise."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLAIN = re.compile(r"(?:[\w\s^$.*+?()|\[\]:{},/=@%;!<>\"'~#&-]|\\[^\w\s])*")
_CLASSES = {"digit": "0-9", "alpha": "A-Za-z", "alnum": "A-Za-z0-9", "space": r"\s"} | {
    "upper": "A-Z",
    "lower": "a-z",
    "blank": r" \t",
    "xdigit": "0-9A-Fa-f",
}
_LONGEST_EXPRESSION = 200
_LONGEST_TEXT = 1000
_MOST_REPEATS = 4


@dataclass(frozen=True)
class Search:
    """What a search gives.

    Attributes:
        holds: whether the text matches.
        groups: the text that matches, and those of the groups; None where POSIX, which looks for
            the longest match, may divide the text in another way than Python.
    """

    holds: bool
    groups: tuple[str, ...] | None


def searched(text: str, expression: str) -> Search | None:
    """Search a text; None where Python may read the expression in another way, or too slowly.

    The grammar is that of POSIX.1-2017, "Extended Regular Expressions".
    """
    if len(expression) > _LONGEST_EXPRESSION or len(text) > _LONGEST_TEXT:
        return None
    if not _PLAIN.fullmatch(expression) or re.search(r"[*+?}][*+?]|\(\?", expression):
        return None
    if len(re.findall(r"[*+{]", expression)) > _MOST_REPEATS or re.search(r"\)[*+{]", expression):
        # Some expressions take a time that grows with a power of the text's length.
        return None
    translated = expression
    for name, chars in _CLASSES.items():
        translated = translated.replace(f"[:{name}:]", chars)
    if "[:" in translated:
        return None
    try:
        found = re.search(translated, text)
    except re.error:
        return None
    if found is None:
        return Search(False, ())
    groups = tuple(each or "" for each in (found[0], *found.groups()))
    return Search(True, groups if _same_groups(expression) else None)


def _same_groups(expression: str) -> bool:
    """Whether no alternative begins another one, so that the first that matches is the longest."""
    for inside in re.findall(r"\(([^()]*)\)", expression):
        words = inside.split("|")
        plain = all(re.fullmatch(r"[\w-]*", word) for word in words)
        begins = any(a != b and b.startswith(a) for a in words for b in words)
        if len(words) > 1 and (begins or not plain):
            return False
    return "|" not in re.sub(r"\([^()]*\)", "", expression)
