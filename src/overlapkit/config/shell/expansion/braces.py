"""Brace expansion: ``a{1..3}`` and ``{x,y}``, which a shell does before anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from overlapkit.config.shell.grammar.syntax import Part, Text, Word

_MOST_WORDS = 2000
_RANGE = re.compile(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.(-?\d+))?")

# A character that is not quoted, with its line, or a part that stays as it is.
_Token = tuple[str, int] | Part


def braces_expanded(word: Word) -> list[Word]:
    """The words that a word's braces make, in order; the word itself where it has none."""
    plain = "".join(p.text for p in word.parts if isinstance(p, Text) and not p.quoted)
    if "{" not in plain or "}" not in plain:
        return [word]
    tokens: list[_Token] = []
    for part in word.parts:
        if isinstance(part, Text) and not part.quoted:
            tokens += [(char, part.line) for char in part.text]
        else:
            tokens.append(part)
    return [Word(_joined(each), word.line) for each in _expanded(tokens)[:_MOST_WORDS]]


def _joined(tokens: Sequence[_Token]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for token in tokens:
        if not isinstance(token, tuple):
            parts.append(token)
            continue
        char, line = token
        last = parts[-1] if parts else None
        if isinstance(last, Text) and not last.quoted and last.line == line:
            parts[-1] = replace(last, text=last.text + char)
        else:
            parts.append(Text(char, line, False))
    return tuple(parts)


def _is(token: _Token, char: str) -> bool:
    return isinstance(token, tuple) and token[0] == char


def _expanded(tokens: Sequence[_Token]) -> list[Sequence[_Token]]:
    start = 0
    while True:
        opened = next((n for n in range(start, len(tokens)) if _is(tokens[n], "{")), None)
        if opened is None:
            return [tokens]
        found = _alternatives(tokens, opened)
        if found is not None:
            break
        start = opened + 1
    choices, closed = found
    ends = _expanded(tokens[closed + 1 :])
    result: list[Sequence[_Token]] = []
    for choice in choices:
        for middle in _expanded(choice):
            result += [[*tokens[:opened], *middle, *end] for end in ends]
            if len(result) > _MOST_WORDS:
                return result
    return result


def _alternatives(
    tokens: Sequence[_Token], opened: int
) -> tuple[list[Sequence[_Token]], int] | None:
    """What the brace at `opened` lists, and where it closes; None where it is plain text."""
    depth, begun = 0, opened + 1
    choices: list[Sequence[_Token]] = []
    for at in range(opened, len(tokens)):
        if _is(tokens[at], "{"):
            depth += 1
        elif _is(tokens[at], "}"):
            depth -= 1
        if (_is(tokens[at], ",") and depth == 1) or depth == 0:
            choices.append(tokens[begun:at])
            begun = at + 1
        if depth == 0:
            if len(choices) > 1:
                return choices, at
            counted = _counted(choices[0])
            return None if counted is None else (counted, at)
    return None


def _counted(inside: Sequence[_Token]) -> list[Sequence[_Token]] | None:
    """The members of ``1..8`` or ``a..e``; None where it is neither."""
    text = "".join(token[0] for token in inside if isinstance(token, tuple))
    found = _RANGE.fullmatch(text)
    if found is None or len(text) < len(inside) or max(map(len, found.groups(""))) > 9:
        return None
    line = inside[0][1] if isinstance(inside[0], tuple) else 0
    first, last = found[1], found[2]
    numbers = first.lstrip("-").isdecimal()
    if numbers != last.lstrip("-").isdecimal():
        return None
    a, b = (int(first), int(last)) if numbers else (ord(first), ord(last))
    step = abs(int(found[3] or 1)) or 1
    members = range(a, b + 1, step) if a <= b else range(a, b - 1, -step)
    padded = numbers and any(t.lstrip("-").startswith("0") and len(t) > 1 for t in (first, last))
    width = max(len(first), len(last)) if padded else 0
    texts = [f"{n:0{width}d}" if numbers else chr(n) for n in members[:_MOST_WORDS]]
    return [[(char, line) for char in text] for text in texts]
