"""Evaluates ``[ … ]`` and ``[[ … ]]`` on known values: strings and whole numbers, never files."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable

from overlapkit.config.shell.syntax import Parameter, Word
from overlapkit.config.shell.values import Field
from overlapkit.config.shell.variables import Variables

Truth = bool | None

_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-lt": operator.lt,
    "-le": operator.le,
    "-gt": operator.gt,
    "-ge": operator.ge,
}
_INTEGER = re.compile(r"\s*[-+]?\d{1,18}\s*")


def evaluate_test(words: tuple[Word, ...], variables: Variables) -> Truth:
    """Whether a test holds; None where that is not known without running it."""
    return _Evaluation(words, variables).either()


class _Evaluation:
    def __init__(self, words: tuple[Word, ...], variables: Variables) -> None:
        self.words = words
        self.variables = variables
        self.at = 0

    def sign(self) -> str:
        """The plain text of the next word; empty at the end or where the word has expansions."""
        return (self.words[self.at].literal or "") if self.at < len(self.words) else ""

    def either(self) -> Truth:
        result = self.both()
        while self.sign() in ("||", "-o"):
            self.at += 1
            other = self.both()
            known = (result, other)
            result = True if True in known else None if None in known else False
        return result

    def both(self) -> Truth:
        result = self.one()
        while self.sign() in ("&&", "-a"):
            self.at += 1
            other = self.one()
            known = (result, other)
            result = False if False in known else None if None in known else True
        return result

    def one(self) -> Truth:
        sign = self.sign()
        if sign == "!":
            self.at += 1
            result = self.one()
            return None if result is None else not result
        if sign == "(":
            self.at += 1
            result = self.either()
            self.at += 1
            return result
        if self.at >= len(self.words):
            return False
        if re.fullmatch(r"-[a-zA-Z]", sign) and self.at + 1 < len(self.words):
            self.at += 2
            return self.unary(sign, self.words[self.at - 1])
        left = self.words[self.at]
        self.at += 1
        compared = self.sign()
        if compared in ("=", "==", "!=", "=~", "<", ">", "-nt", "-ot", "-ef", *_NUMBERS):
            self.at += 2
            if self.at > len(self.words):
                return None
            return self.binary(left, compared, self.words[self.at - 1])
        value = self.known(left)
        return None if value is None else bool(value)

    def unary(self, sign: str, word: Word) -> Truth:
        if sign == "-v":
            name = word.literal
            return None if name is None else self.variables.look_up(name) is not None
        if sign not in ("-z", "-n"):
            return None
        value = self.known(word)
        return None if value is None else (not value) == (sign == "-z")

    def binary(self, left: Word, sign: str, right: Word) -> Truth:
        a, b = self.known(left), self.known(right)
        if a is None or b is None or sign in ("=~", "<", ">", "-nt", "-ot", "-ef"):
            return None
        if sign in _NUMBERS:
            if not (_INTEGER.fullmatch(a) and _INTEGER.fullmatch(b)):
                return None
            return _NUMBERS[sign](int(a), int(b))
        # A quoted right side is compared literally; patterns of [[ ]] are not quoted.
        same = a == b or fnmatch.fnmatchcase(a, b)
        return same if sign != "!=" else not same

    def known(self, word: Word) -> str | None:
        """A word's value; a variable that the script does not set counts as empty."""
        value: Field = self.variables.scalar(word)
        if value.unknown is None:
            return value.text
        parameters = [p for p in word.parts if isinstance(p, Parameter)]
        if all(self.variables.look_up(p.name) is None for p in parameters) and len(
            parameters
        ) == len([piece for piece in value.pieces if piece.unknown]):
            return value.text
        return None
