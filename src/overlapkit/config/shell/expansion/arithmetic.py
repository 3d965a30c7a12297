"""Whole-number arithmetic of a shell, ``$((A * 8))``, on known values.

The grammar is that of bash's manual, "Shell Arithmetic": the operators of C on 64-bit integers,
with ``**``, assignments and a comma.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Protocol

_NUMBER = r"0[xX][0-9a-fA-F]+|\d+#[0-9a-zA-Z@_]+|\d+"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>{_NUMBER})|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><<=|>>=|\*\*|\+\+|--|<=|>=|==|!=|&&|\|\||<<|>>|[-+*/%&|^]=|[-+*/%&|^()<>!~?:,=\[\]]))"
)
_BITS = 64
_DEEPEST = 60


def _wrapped(value: int) -> int:
    """A whole number in 64 bits, as a shell keeps it."""
    value &= (1 << _BITS) - 1
    return value - (1 << _BITS) if value >> (_BITS - 1) else value


def _quotient(a: int, b: int) -> int:
    # A shell rounds toward zero.
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _shift(a: int, b: int) -> int:
    return a << (b & (_BITS - 1))


def _power(a: int, b: int) -> int:
    return pow(a, b, 1 << _BITS) if b >= 0 else 0


_BINARY: dict[str, Callable[[int, int], int]] = {
    "|": operator.or_,
    "^": operator.xor,
    "&": operator.and_,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "<<": _shift,
    ">>": lambda a, b: a >> (b & (_BITS - 1)),
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _quotient,
    "%": lambda a, b: a - b * _quotient(a, b),
    "**": _power,
}
_LEVELS = (
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<", "<=", ">", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
_ASSIGNS = ("=", "+=", "-=", "*=", "/=", "%=", "<<=", ">>=", "&=", "^=", "|=")


class Incalculable(Exception):
    """Why an expression has no value here."""


class Numbers(Protocol):
    """The variables that an expression reads and sets; an index is empty for a plain variable."""

    def number_of(self, name: str, index: int | None) -> int:
        """A variable's value; its exceptions are passed on."""

    def set_number(self, name: str, index: int | None, value: int) -> None:
        """Assign to a variable."""


def calculate(text: str, variables: Numbers) -> int:
    """The value of an expression, whose assignments are made.

    Args:
        text: the expression, after expansion of its ``$`` parts.
        variables: what names in it mean.

    Raises:
        Incalculable: it is not an expression, divides by zero or is too long.
    """
    if len(text) > 2000:
        raise Incalculable("it is too long")
    tokens, at = list[tuple[str, str]](), 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            raise Incalculable(f"{text[at:].strip()[:20]!r} is not calculated here")
        at = found.end()
        tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
    if not tokens:
        return 0
    evaluation = _Evaluation(tokens, variables)
    result = evaluation.comma()
    if evaluation.at < len(tokens):
        raise Incalculable("it is not an expression")
    return result


class _Evaluation:
    """Evaluates while it parses; `live` is false in a part that a shell skips."""

    def __init__(self, tokens: list[tuple[str, str]], variables: Numbers) -> None:
        self.tokens = tokens
        self.variables = variables
        self.at = 0
        self.depth = 0
        self.live = True

    def sign(self, *wanted: str) -> str:
        """Read one of these signs; empty where another token comes next."""
        if self.at < len(self.tokens):
            kind, text = self.tokens[self.at]
            if kind == "sign" and text in wanted:
                self.at += 1
                return text
        return ""

    def need(self, sign: str) -> None:
        if not self.sign(sign):
            raise Incalculable("it is not an expression")

    def comma(self) -> int:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Incalculable("it nests too deeply")
        result = self.assignment()
        while self.sign(","):
            result = self.assignment()
        self.depth -= 1
        return result

    def assignment(self) -> int:
        start = self.at
        target = self.target()
        if target is not None and (sign := self.sign(*_ASSIGNS)):
            value = self.assignment()
            if sign != "=":
                value = self.applied(sign[:-1], self.read(target), value)
            return self.store(target, value)
        self.at = start
        return self.choice()

    def target(self) -> tuple[str, int | None] | None:
        """A variable, with its index; None where none comes next."""
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != "name":
            return None
        name = self.tokens[self.at][1]
        self.at += 1
        index = None
        if self.sign("["):
            index = self.comma()
            self.need("]")
        return name, index

    def read(self, target: tuple[str, int | None]) -> int:
        return self.variables.number_of(*target) if self.live else 0

    def store(self, target: tuple[str, int | None], value: int) -> int:
        if self.live:
            self.variables.set_number(*target, value)
        return value

    def choice(self) -> int:
        condition = self.either()
        if not self.sign("?"):
            return condition
        live = self.live
        self.live = live and condition != 0
        first = self.comma()
        self.need(":")
        self.live = live and condition == 0
        second = self.assignment()
        self.live = live
        return first if condition else second

    def either(self) -> int:
        result = self.both()
        while self.sign("||"):
            live = self.live
            self.live = live and not result
            other = self.both()
            self.live = live
            result = int(bool(result or other))
        return result

    def both(self) -> int:
        result = self.binary(0)
        while self.sign("&&"):
            live = self.live
            self.live = live and bool(result)
            other = self.binary(0)
            self.live = live
            result = int(bool(result and other))
        return result

    def binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self.power()
        result = self.binary(level + 1)
        while sign := self.sign(*_LEVELS[level]):
            result = self.applied(sign, result, self.binary(level + 1))
        return result

    def power(self) -> int:
        base = self.unary()
        if self.sign("**"):
            self.depth += 1
            if self.depth > _DEEPEST:
                raise Incalculable("it nests too deeply")
            base = self.applied("**", base, self.power())
            self.depth -= 1
        return base

    def applied(self, sign: str, a: int, b: int) -> int:
        if not self.live:
            return 0
        if sign in ("/", "%") and b == 0:
            raise Incalculable("it divides by zero")
        return _wrapped(int(_BINARY[sign](a, b)))

    def unary(self) -> int:
        if step := self.sign("++", "--"):
            target = self.target()
            if target is not None:
                return self.store(target, _wrapped(self.read(target) + (1 if step == "++" else -1)))
            # Two signs in front of a number.
            return self.unary()
        sign = self.sign("-", "+", "!", "~")
        if not sign:
            return self.operand()
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Incalculable("it nests too deeply")
        value = self.unary()
        self.depth -= 1
        return {"-": _wrapped(-value), "+": value, "!": int(not value), "~": ~value}[sign]

    def operand(self) -> int:
        if self.sign("("):
            result = self.comma()
            self.need(")")
            return result
        target = self.target()
        if target is not None:
            value = self.read(target)
            if step := self.sign("++", "--"):
                self.store(target, _wrapped(value + (1 if step == "++" else -1)))
            return value
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "number":
            digits = self.tokens[self.at][1]
            self.at += 1
            return number(digits)
        raise Incalculable("it is not an expression")


def number(digits: str) -> int:
    """A whole number as a shell writes it: decimal, ``017``, ``0x1f`` or ``2#101``.

    Raises:
        Incalculable: it is not one.
    """
    base, sign, text = digits.rpartition("#")
    if not sign:
        octal = digits.startswith("0") and digits.isdecimal() and len(digits) > 1
        base, text = "8" if octal else "16" if digits[:2] in ("0x", "0X") else "10", digits
    if text[:2] in ("0x", "0X"):
        text = text[2:]
    if int(base) > 36 or len(text) > 64:
        raise Incalculable(f"{digits[:20]!r} is not calculated here")
    try:
        return _wrapped(int(text, int(base)))
    except ValueError:
        raise Incalculable(f"{digits[:20]!r} is not a number in a shell") from None
