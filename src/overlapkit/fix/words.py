"""The words of a script as they are written: where a flag is, and the words after it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlapkit.fix.splice import line_end, line_start

_BETWEEN = re.compile(r"(?:[ \t]+#[^\n]*|[ \t]|\\\r?\n|\r?\n)*")
"""What can be between two words of an array, a quoted text or a continued line."""
_WORD = re.compile(
    r"""(?P<quote>\\?["'])(?P<inside>(?:\$\{[^}\n]*\}|[^"'\n\\])*)(?P=quote)"""
    r"""|(?P<bare>(?:\$\{[^}\n]*\}|\$\(\([^\n]*?\)\)|\$\([^()\n]*\)|[^\s"'`\\;|&()<>{}$]|\$)+)"""
)
_PLAIN = re.compile(r"[\w@%+=:,./-]+")


@dataclass(frozen=True)
class Written:
    """A word of a script.

    Attributes:
        start, end: its first character and the one after its last, quotes included.
        text: what is written, without quotes and not expanded.
        quote: its quotes; empty without.
    """

    start: int
    end: int
    text: str
    quote: str = ""

    def with_text(self, text: str) -> str:
        """The same word with another text, in the same quotes."""
        if self.quote:
            return f"{self.quote}{text}{self.quote}"
        return text if _PLAIN.fullmatch(text) else shlex.quote(text)


def word_at(text: str, at: int) -> Written | None:
    """The word that begins at a place."""
    found = _WORD.match(text, at)
    if found is None:
        return None
    quote = found["quote"] or ""
    return Written(*found.span(), found["inside"] if quote else found["bare"], quote)


def flag_at(text: str, at: int, name: str) -> Written | None:
    """The flag at a place: ``--flag``, ``--flag=value`` or ``"--flag"``; quotes are its own only
    where they enclose nothing else."""
    if not text.startswith(name, at):
        return None
    before = text[at - 1 : at]
    if before in ("'", '"') and (quoted := word_at(text, at - 1)) is not None:
        alone = quoted.text == name or quoted.text.startswith(f"{name}=")
        if alone and " " not in quoted.text:
            return quoted
    end = at + len(name)
    if text[end : end + 1] == "=":
        value = word_at(text, end + 1)
        end = value.end if value is not None else end + 1
    elif re.match(r"[\w-]", text[end : end + 1]):
        return None
    return Written(at, end, text[at:end])


def flags(text: str, names: Sequence[str], place: tuple[int, int | None] | None) -> list[Written]:
    """Where a flag is written, the likeliest place first.

    Args:
        text: the script.
        names: how it may be spelt.
        place: its line and column from 1, as far as they are known.
    """
    found = [
        each
        for name in names
        for match in re.finditer(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
        if not _in_comment(text, match.start())
        and (each := flag_at(text, match.start(), name)) is not None
    ]
    if place is None:
        return found
    line, column = place

    def distance(each: Written) -> tuple[int, int]:
        here = text.count("\n", 0, each.start) + 1
        return abs(here - line), abs(each.start - line_start(text, each.start) + 1 - (column or 1))

    return sorted(found, key=distance)


def _in_comment(text: str, at: int) -> bool:
    line = text[line_start(text, at) : at]
    return line.lstrip().startswith("#") and not line.lstrip().startswith("#!")


def words_after(text: str, at: int) -> Iterator[Written]:
    """The words after a place, up to the end of the command, array or quoted text."""
    while True:
        between = _BETWEEN.match(text, at)
        here = between.end() if between is not None else at
        word = word_at(text, here) if here > at else None
        if word is None or word.end == word.start:
            return
        yield word
        at = word.end


def on_one_line(text: str, start: int, words: Sequence[Written]) -> list[Written]:
    """Those of the words after a place that are before the first line break that is not continued:
    behind it another command may be, or the end of a heredoc."""
    kept: list[Written] = []
    for word in words:
        between = text[kept[-1].end if kept else start : word.start]
        if re.search(r"(?<!\\)\r?\n", between.replace("\\\r\n", "\\\n")):
            break
        kept.append(word)
    return kept


def variable_of(word: str) -> str | None:
    """The variable whose value is the entire word: ``$A``, ``${A}`` or ``${A:-8}``."""
    found = re.fullmatch(r"\$(?:(\w+)|\{(\w+)(?::?[-=?+][^}]*)?\})", word)
    return (found[1] or found[2]) if found is not None else None


def uses_of(text: str, name: str) -> int:
    """How often a script uses a variable: expanded, or by name in arithmetic."""
    named = re.escape(name)
    expanded = re.findall(rf"\$\{{?[#!]?{named}(?!\w)", text)
    counted = [
        inside
        for inside in re.findall(r"\(\(([^\n]*?)\)\)", text)
        for _ in re.findall(rf"(?<![\w$\{{]){named}(?!\w)", inside)
    ]
    return len(expanded) + len(counted)


def assignments_of(text: str, name: str) -> list[Written]:
    """The values that a script gives a variable, as they are written."""
    pattern = re.compile(
        rf"(?:^|[;&|({{]|\b(?:then|do|else|export|readonly|local|declare(?:[ \t]+-\w+)*))[ \t]*"
        rf"{re.escape(name)}=",
        re.MULTILINE,
    )
    found = (
        word_at(text, match.end())
        for match in pattern.finditer(text)
        if not _in_comment(text, match.end())
    )
    return [word for word in found if word is not None]


def with_value(word: Written, value: str) -> str:
    """A word that states a value, with another one: ``${TP:-8}`` keeps its form."""
    default = re.fullmatch(r"(\$\{\w+:?[-=])([^}$]*)(\})", word.text)
    if default is not None and _PLAIN.fullmatch(value):
        return word.with_text(f"{default[1]}{value}{default[3]}")
    return word.with_text(value)


def is_alone_on_line(text: str, start: int, end: int) -> bool:
    """Whether nothing but a continuation or a comment is on the line beside a range."""
    after = text[end : line_end(text, end)].strip()
    before = text[line_start(text, start) : start]
    return not before.strip() and (after in ("", "\\") or after.startswith("#"))
