"""A number that can be traced: to the formula that made it, to its inputs, to their sources.

Figures are computed with the ordinary operators, which write the formula down as they go, so that
what is shown cannot differ from what was computed:

    >>> tokens, rate = given("tokens", 4096, "tokens"), given("rate", 2048, "tokens/s")
    >>> time = (tokens / rate).called("time", "s")
    >>> time.value, time.formula
    (2.0, 'tokens / rate')

An operation has no name until `called` gives it one; until then it is written into the formula of
what is computed from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Union

import msgspec

Operand = Union["Figure", int, float]

_SUM, _PRODUCT, _ATOM = range(3)
"""How tightly a formula binds: what is looser than its place needs brackets."""


class Figure(msgspec.Struct, frozen=True, gc=False):
    """A value with its derivation.

    A sweep makes a million of them, which a Struct does in half the time of a dataclass.

    Attributes:
        value: in `unit`.
        unit: "s", "B", "FLOP" …; empty for a plain number.
        name: what it is; empty for an operation that has not been named.
        formula: how it was computed, in the names of `inputs`; empty for a fact.
        inputs: the named figures in the formula, in order of appearance.
        source: where a fact comes from, or the formula.
        binding: how tightly `formula` binds.
    """

    value: float
    unit: str = ""
    name: str = ""
    formula: str = ""
    inputs: tuple[Figure, ...] = ()
    source: str = ""
    binding: int = _ATOM

    def called(self, name: str, unit: str | None = None, source: str = "") -> Figure:
        """The same value under a name, with a unit and a source if given."""
        unit = self.unit if unit is None else unit
        if self.name:
            return Figure(self.value, unit, name, self.name, (self,), source)
        return Figure(self.value, unit, name, self.formula, self.inputs, source, self.binding)

    def __add__(self, other: Operand) -> Figure:
        return _operation(self, other, "+", self.value + _value(other), _SUM)

    def __radd__(self, other: Operand) -> Figure:
        return _figure(other) + self

    def __sub__(self, other: Operand) -> Figure:
        return _operation(self, other, "-", self.value - _value(other), _SUM)

    def __rsub__(self, other: Operand) -> Figure:
        return _figure(other) - self

    def __mul__(self, other: Operand) -> Figure:
        return _operation(self, other, "*", self.value * _value(other), _PRODUCT)

    def __rmul__(self, other: Operand) -> Figure:
        return _figure(other) * self

    def __truediv__(self, other: Operand) -> Figure:
        return _operation(self, other, "/", self.value / _value(other), _PRODUCT)

    def __rtruediv__(self, other: Operand) -> Figure:
        return _figure(other) / self

    def __float__(self) -> float:
        return self.value


def given(name: str, value: float, unit: str = "", source: str = "") -> Figure:
    """A fact: a setting, a data-sheet figure, a constant."""
    return Figure(float(value), unit, name, source=source)


def total(terms: Iterable[Operand]) -> Figure:
    """The sum; a plain 0 of no terms."""
    result = None
    for term in terms:
        result = _figure(term) if result is None else result + term
    return Figure(0.0, formula="0") if result is None else result


def largest(*operands: Operand) -> Figure:
    """The greatest of the operands."""
    return _function("max", operands, max(map(_value, operands)))


def smallest(*operands: Operand) -> Figure:
    """The least of the operands."""
    return _function("min", operands, min(map(_value, operands)))


def rounded_up(operand: Figure) -> Figure:
    """The least whole number that is not below the operand."""
    return _function("ceil", (operand,), float(math.ceil(operand.value - 1e-9)))


def figure_json(figure: Figure) -> dict[str, Any]:
    """The figure and all that it was computed from, each once: ``{name, figures: {...}}``.

    Figures of one name but unlike derivations are told apart by a number behind the name.
    """
    alike = _Alike()
    each = [one for _, one, before in _walk(figure, alike) if not before]
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for one in each:
        name = one.name or one.formula
        count = taken[name] = taken.get(name, 0) + 1
        names[alike.key(one)] = name if count == 1 else f"{name} #{count}"
    return {
        "name": names[alike.key(figure)],
        "figures": {
            names[alike.key(one)]: {
                "value": one.value,
                "unit": one.unit,
                "formula": one.formula,
                "inputs": [names[alike.key(given)] for given in one.inputs],
                "source": one.source,
            }
            for one in each
        },
    }


def work(figure: Figure) -> Iterator[tuple[int, Figure, bool]]:
    """The derivation as a tree, root first: depth, figure, and whether it was told before.

    What was told before is not told again, so a shared input has its own inputs once. Figures that
    were derived in the same way from the same facts are one.
    """
    return _walk(figure, _Alike())


class _Alike:
    """Numbers figures so that those of one derivation have one number."""

    def __init__(self) -> None:
        self._of_object: dict[int, int] = {}
        self._of_content: dict[tuple[Any, ...], int] = {}

    def key(self, figure: Figure) -> int:
        known = self._of_object.get(id(figure))
        if known is None:
            inputs = tuple(self.key(one) for one in figure.inputs)
            content = figure.name, figure.value, figure.unit, figure.formula, figure.source, inputs
            known = self._of_content.setdefault(content, len(self._of_content))
            self._of_object[id(figure)] = known
        return known


def _walk(figure: Figure, alike: _Alike) -> Iterator[tuple[int, Figure, bool]]:
    told: set[int] = set()
    stack = [(0, figure)]
    while stack:
        depth, one = stack.pop()
        key = alike.key(one)
        before = key in told
        yield depth, one, before
        if not before:
            told.add(key)
            stack += [(depth + 1, each) for each in reversed(one.inputs)]


def _figure(operand: Operand) -> Figure:
    if isinstance(operand, Figure):
        return operand
    return Figure(float(operand), formula=f"{operand:g}")


def _value(operand: Operand) -> float:
    return operand.value if isinstance(operand, Figure) else operand


def _operation(left: Operand, right: Operand, sign: str, value: float, binding: int) -> Figure:
    a, b = _figure(left), _figure(right)
    # a - (b + c) and a / (b * c) need brackets where a + (b + c) does not.
    strict = sign in "-/"
    formula = f"{_term(a, binding)} {sign} {_term(b, binding + strict)}"
    unit = a.unit if binding == _SUM else ""
    return Figure(float(value), unit, "", formula, _merged((a, b)), binding=binding)


def _term(figure: Figure, needed: int) -> str:
    if figure.name:
        return figure.name
    return f"({figure.formula})" if figure.binding < needed else figure.formula


def _function(name: str, operands: Iterable[Operand], value: float) -> Figure:
    figures = [_figure(operand) for operand in operands]
    told = ", ".join(_term(figure, _SUM) for figure in figures)
    return Figure(float(value), figures[0].unit, "", f"{name}({told})", _merged(figures))


def _merged(figures: Iterable[Figure]) -> tuple[Figure, ...]:
    """The named figures among these and their operations, each once."""
    found: dict[int, Figure] = {}
    for figure in figures:
        for one in (figure,) if figure.name else figure.inputs:
            found.setdefault(id(one), one)
    return tuple(found.values())
