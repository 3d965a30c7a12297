"""Evaluates ``[ … ]`` and ``[[ … ]]`` on known values: strings and whole numbers, never files."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from overlapkit.config.shell.expansion.expand import Expander
from overlapkit.config.shell.expansion.regular import searched
from overlapkit.config.shell.expansion.words import NotKnown
from overlapkit.config.shell.grammar.syntax import Parameter, Text, Word
from overlapkit.config.shell.values import Array, Field, Unknown, known, not_known

Truth = bool | None

_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-lt": operator.lt,
    "-le": operator.le,
    "-gt": operator.gt,
    "-ge": operator.ge,
}
_INTEGER = re.compile(r"\s*[-+]?\d{1,19}\s*")
_OCTAL = re.compile(r"\s*[-+]?0\d")
_ORDERS = ("=~", "<", ">", "-nt", "-ot", "-ef")


def evaluate_test(words: tuple[Word, ...], expander: Expander, *, double: bool = True) -> Truth:
    """Whether a test holds; None where that is not known without running it.

    Args:
        words: what is between the brackets.
        expander: the variables; names that it reads and nothing sets are added to its `unset`.
        double: whether it is ``[[ ]]``, where the right side of ``==`` is a pattern.
    """
    return _Evaluation(words, expander, double=double).whole()


class _Evaluation:
    def __init__(self, words: tuple[Word, ...], expander: Expander, *, double: bool) -> None:
        self.words = words
        self.expander = expander
        self.double = double
        self.at = 0

    def whole(self) -> Truth:
        if not self.double:
            self.words = tuple(each for word in self.words for each in self._split(word))
            if len(self.words) == 1:
                # [ -n ] asks whether the text -n is empty.
                value = self.known(self.words[0])
                return None if value is None else bool(value)
        result = self.either()
        if not self.double and self.at < len(self.words):
            # Such as [ = 1 ], where a variable is empty: an error, with which the test fails.
            return False
        return result

    def _split(self, word: Word) -> list[Word]:
        """The words of ``[ ]`` that a word becomes: an unquoted empty variable is none."""
        if not any(isinstance(p, Parameter) and not p.quoted for p in word.parts):
            return [word]
        names = list(self.expander.unset)
        fields = self.expander.fields(word)
        if any(p.unknown is not None and not p.unknown.unset for f in fields for p in f.pieces):
            self.expander.unset[:] = names
            return [word]
        for each in fields:
            self.expander.note_unset(each)
        kept = [f for f in fields if f.text or any(p.quoted for p in f.pieces if not p.unknown)]
        return [Word((Text(f.text, word.line, True),), word.line) for f in kept]

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
        following = self.words[self.at + 1].literal if self.at + 1 < len(self.words) else None
        compares = following in ("=", "==", "!=", *_ORDERS, *_NUMBERS)
        if re.fullmatch(r"-[a-zA-Z]", sign) and self.at + 1 < len(self.words) and not compares:
            self.at += 2
            return self.unary(sign, self.words[self.at - 1])
        left = self.words[self.at]
        self.at += 1
        compared = self.sign()
        if compared in ("=", "==", "!=", *_ORDERS, *_NUMBERS):
            self.at += 2
            if self.at > len(self.words):
                return None
            return self.binary(left, compared, self.words[self.at - 1])
        value = self.known(left)
        return None if value is None else bool(value)

    def unary(self, sign: str, word: Word) -> Truth:
        if sign == "-v":
            return self.is_set(word.literal)
        if sign == "-o":
            return word.literal in self.expander.state.options
        if sign == "-R":
            variable = self.expander.state.find(word.literal or "")
            return variable is not None and bool(variable.refers)
        if sign not in ("-z", "-n"):
            return None
        value = self.known(word)
        return None if value is None else (not value) == (sign == "-z")

    def is_set(self, name: str | None) -> Truth:
        if name is None:
            return None
        plain, _, index = name.partition("[")
        try:
            found = self.expander.element(plain, index.rstrip("]") or None, 0)
        except NotKnown:
            return None
        if found is None:
            self.expander.unset.append(plain)
            return None if self.expander.state.unread else False
        return True

    def binary(self, left: Word, sign: str, right: Word) -> Truth:
        a = self.known(left)
        if sign in ("-nt", "-ot", "-ef") or a is None:
            return None
        if sign in ("=", "==", "!=") and self.double:
            pattern = self.expander.pattern(right, extended=True)
            if isinstance(pattern, Unknown):
                # An empty value for a variable that nothing sets, as below.
                b = self.known(right)
                return None if b is None else (a == b) == (sign != "!=")
            return pattern.matches(a) == (sign != "!=") if len(a) < 4000 else None
        if sign == "=~":
            return self.searched(a, right)
        b = self.known(right)
        if b is None:
            return None
        if sign in ("<", ">"):
            return a < b if sign == "<" else a > b
        if sign in _NUMBERS:
            numbers = [self.number(text, right.line) for text in (a, b)]
            if numbers[0] is None or numbers[1] is None:
                # bash reports an error, and the test does not hold.
                return None if self.double else False
            return _NUMBERS[sign](numbers[0], numbers[1])
        return (a == b) == (sign != "!=")

    def searched(self, text: str, word: Word) -> Truth:
        """``text =~ word``, which sets BASH_REMATCH."""
        expression = self.regular(word)
        state = self.expander.state
        if "nocasematch" in state.options:
            expression = None
        found = None if expression is None else searched(text, expression)
        if found is None:
            why = f"whether {text[:30]!r} matches an expression is not known"
            state.put("BASH_REMATCH", not_known(Unknown(None, why, word.line)))
            return None
        groups = found.groups if found.holds else ()
        if groups is None:
            why = "which part of the text a group matches is not followed"
            state.put("BASH_REMATCH", not_known(Unknown(None, why, word.line)))
        else:
            state.put("BASH_REMATCH", Array(tuple(known(each, word.line) for each in groups)))
        return found.holds

    def regular(self, word: Word) -> str | None:
        """A word as a regular expression, whose quoted parts are literal."""
        written = ""
        for part in word.parts:
            value = self.known(Word((part,), word.line))
            if value is None:
                return None
            written += re.escape(value) if part.quoted else value
        return written

    def number(self, text: str, line: int) -> int | None:
        if _INTEGER.fullmatch(text) and not (self.double and _OCTAL.match(text)):
            return int(text)
        if not self.double:
            return None
        try:
            return self.expander.count_text(text, line)
        except NotKnown:
            return None

    def known(self, word: Word) -> str | None:
        """A word's value; a variable that the script does not set counts as empty."""
        value: Field = self.expander.scalar(word)
        if value.unknown is None:
            return value.text
        if all(piece.unknown is None or piece.unknown.unset for piece in value.pieces):
            self.expander.note_unset(value)
            return value.text
        return None
