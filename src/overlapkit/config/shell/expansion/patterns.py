"""Patterns of a shell, ``*.sh`` and ``@(a|b)``, on texts; files are never looked at.

A pattern is matched by the set of offsets that it can reach, so that the time is bounded by the
product of the lengths, whatever the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LONGEST = 4000
"""Characters of a text that a pattern is searched in."""

_CLASSES: dict[str, Callable[[str], bool]] = {
    "digit": str.isdigit,
    "alpha": str.isalpha,
    "alnum": str.isalnum,
    "upper": str.isupper,
    "lower": str.islower,
    "space": str.isspace,
    "blank": lambda c: c in " \t",
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
    "punct": lambda c: c.isprintable() and not c.isalnum() and c != " ",
}


@dataclass(frozen=True)
class _Char:
    """One character: that satisfies a test."""

    holds: Callable[[str], bool]


@dataclass(frozen=True)
class _Star:
    """Any text."""


@dataclass(frozen=True)
class _Choice:
    """``?(…)``, ``*(…)``, ``+(…)``, ``@(…)`` or ``!(…)``: alternatives, and how often."""

    kind: str
    alternatives: tuple[tuple[_Token, ...], ...]


_Token = _Char | _Star | _Choice


class Pattern:
    """A shell's pattern.

    Args:
        parts: its texts in order, each with whether it was quoted; quoted text is literal.
        extended: whether ``@(…)`` and its kind are special (``extglob``; always so in ``[[ ]]``).
    """

    def __init__(self, parts: Iterable[tuple[str, bool]], *, extended: bool = True) -> None:
        chars = [(char, quoted) for text, quoted in parts for char in text]
        self._tokens = _parsed(chars, extended=extended)

    def matches(self, text: str) -> bool:
        """Whether the entire text matches."""
        return len(text) in _ends(self._tokens, text, {0})

    def prefix(self, text: str, *, longest: bool) -> int | None:
        """The length of the shortest or longest start that matches; None where none does."""
        ends = _ends(self._tokens, text, {0})
        return (max(ends) if longest else min(ends)) if ends else None

    def suffix(self, text: str, *, longest: bool) -> int | None:
        """The length of the shortest or longest end that matches; None where none does."""
        ends = _ends(_reversed(self._tokens), text[::-1], {0})
        return (max(ends) if longest else min(ends)) if ends else None

    def spans(self, text: str, *, every: bool) -> list[tuple[int, int]]:
        """The leftmost, longest matches that are not empty, the first one or all."""
        found: list[tuple[int, int]] = []
        at = 0
        while at < len(text):
            end = max(_ends(self._tokens, text, {at}), default=at)
            if end > at:
                found.append((at, end))
                if not every:
                    break
            at = max(end, at + 1)
        return found


def _parsed(chars: Sequence[tuple[str, bool]], *, extended: bool) -> tuple[_Token, ...]:
    tokens: list[_Token] = []
    at = 0
    while at < len(chars):
        char, quoted = chars[at]
        following = chars[at + 1] if at + 1 < len(chars) else ("", False)
        if not quoted and extended and char in "?*+@!" and following == ("(", False):
            found = _choice(chars, at)
            if found is not None:
                tokens.append(found[0])
                at = found[1]
                continue
        if not quoted and char == "\\" and following[0]:
            tokens.append(_literal(following[0]))
            at += 2
        elif not quoted and char == "*":
            tokens.append(_Star())
            at += 1
        elif not quoted and char == "?":
            tokens.append(_Char(lambda _: True))
            at += 1
        elif not quoted and char == "[" and (bracket := _bracket(chars, at)) is not None:
            tokens.append(bracket[0])
            at = bracket[1]
        else:
            tokens.append(_literal(char))
            at += 1
    return tuple(tokens)


def _literal(char: str) -> _Char:
    return _Char(lambda c: c == char)


def _choice(chars: Sequence[tuple[str, bool]], at: int) -> tuple[_Choice, int] | None:
    depth, begun = 0, at + 2
    alternatives: list[Sequence[tuple[str, bool]]] = []
    for end in range(at + 1, len(chars)):
        char, quoted = chars[end]
        if quoted:
            continue
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        if (char == "|" and depth == 1) or depth == 0:
            alternatives.append(chars[begun:end])
            begun = end + 1
        if depth == 0:
            inside = tuple(_parsed(each, extended=True) for each in alternatives)
            return _Choice(chars[at][0], inside), end + 1
    return None


def _bracket(chars: Sequence[tuple[str, bool]], at: int) -> tuple[_Char, int] | None:
    """``[abc]``, ``[!a-z]``, ``[[:digit:]]``."""
    start = at + 1
    negated = start < len(chars) and chars[start][0] in "!^" and not chars[start][1]
    start += negated
    end = start
    text = "".join(char for char, _ in chars)
    # A ] that comes first is a member.
    while end < len(chars) and (end == start or chars[end][0] != "]" or chars[end][1]):
        named = re.compile(r"\[:\w+:\]").match(text, end)
        end = named.end() if named else end + 1
    if end >= len(chars):
        return None
    tests: list[Callable[[str], bool]] = []
    here = start
    while here < end:
        named = re.compile(r"\[:(\w+):\]").match(text, here, end)
        if named is not None:
            tests.append(_CLASSES.get(named[1], lambda _: False))
            here = named.end()
        elif text[here + 1 : here + 2] == "-" and here + 2 < end:
            tests.append(_between(text[here], text[here + 2]))
            here += 3
        else:
            tests.append(_between(text[here], text[here]))
            here += 1
    return _Char(lambda c: any(test(c) for test in tests) != negated), end + 1


def _between(low: str, high: str) -> Callable[[str], bool]:
    return lambda c: low <= c <= high


def _reversed(tokens: tuple[_Token, ...]) -> tuple[_Token, ...]:
    return tuple(
        _Choice(t.kind, tuple(_reversed(each) for each in t.alternatives))
        if isinstance(t, _Choice)
        else t
        for t in reversed(tokens)
    )


def _ends(tokens: tuple[_Token, ...], text: str, starts: set[int]) -> set[int]:
    """Where a match of all tokens can end that begins at one of `starts`."""
    here = starts
    for token in tokens:
        if not here:
            break
        if isinstance(token, _Star):
            here = set(range(min(here), len(text) + 1))
        elif isinstance(token, _Char):
            here = {at + 1 for at in here if at < len(text) and token.holds(text[at])}
        else:
            here = _choice_ends(token, text, here)
    return here


def _choice_ends(choice: _Choice, text: str, starts: set[int]) -> set[int]:
    def once(here: set[int]) -> set[int]:
        return set[int]().union(*(_ends(each, text, here) for each in choice.alternatives))

    if choice.kind == "!":
        result: set[int] = set()
        for at in starts:
            result |= set(range(at, len(text) + 1)) - once({at})
        return result
    reached = once(starts)
    if choice.kind in "*+":
        new = reached
        while new:
            new = once(new) - reached
            reached = reached | new
    return reached | starts if choice.kind in "?*" else reached
