"""Whole-number arithmetic of a shell, ``$((A * 8))``, on known values."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

_NUMBER = r"0[xX][0-9a-fA-F]+|\d+"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>{_NUMBER})|\$?\{{?(?P<name>[A-Za-z_]\w*|(?<=\$)\d)\}}?"
    r"|(?P<sign>\*\*|<=|>=|==|!=|&&|\|\||<<|>>|[-+*/%()<>!]))"
)
_LIMIT = 2**63


def _quotient(a: int, b: int) -> int:
    # A shell rounds toward zero.
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: _quotient,
    ast.Mod: lambda a, b: a - b * _quotient(a, b),
    ast.Eq: lambda a, b: int(a == b),
    ast.NotEq: lambda a, b: int(a != b),
    ast.Lt: lambda a, b: int(a < b),
    ast.LtE: lambda a, b: int(a <= b),
    ast.Gt: lambda a, b: int(a > b),
    ast.GtE: lambda a, b: int(a >= b),
}


class Incalculable(Exception):
    """Why an expression has no value here."""


def calculate(text: str, value_of: Callable[[str], int]) -> int:
    """The value of an expression of whole numbers, variables, + - * / % ** and comparisons.

    Args:
        text: the expression; ``NAME``, ``$NAME`` and ``${NAME}`` are variables.
        value_of: a variable's value; its exceptions are passed on.

    Raises:
        Incalculable: another operator, a division by zero, more than 64 bits.
    """
    at, written = 0, []
    text = text.strip()
    if len(text) > 1000:
        raise Incalculable("it is too long")
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Incalculable(f"{text[at:].strip()[:20]!r} is not calculated here")
        at = found.end()
        if found["number"]:
            digits = found["number"]
            octal = digits.startswith("0") and digits.isdecimal() and len(digits) > 1
            if len(digits) > 19 or (octal and set(digits) & set("89")):
                raise Incalculable(f"{digits[:20]!r} is not a number in a shell")
            written.append(str(int(digits, 8 if octal else 0)))
        elif found["name"]:
            written.append(f"({value_of(found['name'])})")
        elif found["sign"] in ("**", "<<", ">>", "&&", "||", "!"):
            raise Incalculable(f"{found['sign']!r} is not calculated here")
        else:
            written.append("//" if found["sign"] == "/" else found["sign"])
    try:
        tree = ast.parse(" ".join(written) or "0", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Incalculable("it is not an expression") from None
    return _value(tree.body, 0)


def _value(node: ast.expr, depth: int) -> int:
    if depth > 100:
        raise Incalculable("it nests too deeply")
    if isinstance(node, ast.Constant) and type(node.value) is int:
        result = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _value(node.operand, depth + 1)
        result = -inner if isinstance(node.op, ast.USub) else inner
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, depth + 1), _value(node.right, depth + 1)
        if right == 0 and isinstance(node.op, (ast.FloorDiv, ast.Mod)):
            raise Incalculable("it divides by zero")
        result = _OPERATORS[type(node.op)](left, right)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = _value(node.left, depth + 1), _value(node.comparators[0], depth + 1)
        result = _OPERATORS[type(node.ops[0])](left, right)
    else:
        raise Incalculable("it is not an expression of whole numbers")
    if not -_LIMIT <= result < _LIMIT:
        raise Incalculable("it does not fit into 64 bits")
    return result
