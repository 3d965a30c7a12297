"""What ``getopt`` of util-linux prints: the arguments of a script in order, options first.

Facts of its manual, getopt(1): a value follows an option whose name ends with ``:``, and may follow
one whose name ends with ``::``; a long option may be shortened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class _Refused(Exception):
    """The arguments are no options that are declared, or getopt is used otherwise than here."""


def arranged(words: Sequence[str]) -> str | None:
    """What ``getopt`` prints of its arguments; None where it fails or is not followed."""
    try:
        short, long, quoted, rest = _declared(list(words))
        options, others = _sorted(rest, short, long)
    except _Refused:
        return None
    shown = [_quoted(text) if quoted and is_value else text for text, is_value in options]
    shown += ["--", *(_quoted(text) if quoted else text for text in others)]
    return "".join(f" {each}" for each in shown) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _declared(words: list[str]) -> tuple[str, dict[str, int], bool, list[str]]:
    """The short options, the long ones with their colons, whether values are quoted, the rest."""
    if words and not words[0].startswith("-"):
        return words[0], {}, False, words[1:]
    short, long = None, dict[str, int]()
    while words and words[0] != "--":
        name, is_set, value = words.pop(0).partition("=")
        if name in ("-a", "-q", "--alternative", "--quiet"):
            continue
        if name not in _TAKING:
            raise _Refused
        if not is_set:
            if not words:
                raise _Refused
            value = words.pop(0)
        if _TAKING[name] == "short":
            short = value
        elif _TAKING[name] == "long":
            names = [each for each in re.split(r"[,\s]+", value) if each]
            long |= {each.rstrip(":"): len(each) - len(each.rstrip(":")) for each in names}
    if short is None or short[:1] in ("+", "-"):
        raise _Refused
    return short, long, True, words[1:]


_TAKING = {
    "-o": "short",
    "--options": "short",
    "-l": "long",
    "--long": "long",
    "--longoptions": "long",
    "-n": "name",
    "--name": "name",
}


def _sorted(
    words: list[str], short: str, long: dict[str, int]
) -> tuple[list[tuple[str, bool]], list[str]]:
    """The options, each with whether it is a value, and the other words."""
    options: list[tuple[str, bool]] = []
    others: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return options, others + words
        if word.startswith("--"):
            options += _long(word, long, words)
        elif word.startswith("-") and len(word) > 1:
            options += _short(word[1:], short, words)
        else:
            others.append(word)
    return options, others


def _long(word: str, long: dict[str, int], words: list[str]) -> list[tuple[str, bool]]:
    name, is_set, value = word[2:].partition("=")
    fitting = [name] if name in long else [each for each in long if each.startswith(name)]
    if len(fitting) != 1:
        raise _Refused
    colons = long[fitting[0]]
    if colons == 1 and not is_set:
        if not words:
            raise _Refused
        value = words.pop(0)
    if is_set and not colons:
        raise _Refused
    option = (f"--{fitting[0]}", False)
    return [option, (value, True)] if colons else [option]


def _short(letters: str, short: str, words: list[str]) -> list[tuple[str, bool]]:
    options: list[tuple[str, bool]] = []
    while letters:
        letter, letters = letters[0], letters[1:]
        at = short.find(letter)
        if at < 0 or letter == ":":
            raise _Refused
        options.append((f"-{letter}", False))
        colons = len(short[at + 1 :]) - len(short[at + 1 :].lstrip(":"))
        if colons:
            if not letters and colons == 1:
                if not words:
                    raise _Refused
                letters = words.pop(0)
            options.append((letters, True))
            return options
    return options
