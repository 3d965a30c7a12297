"""A number that can be traced to the formula that made it, to its inputs, and to their sources.

Figures are computed with the ordinary operators, which also record the formula. What is shown
therefore cannot differ from what was computed:

    >>> tokens, rate = given("tokens", 4096, "tokens"), given("rate", 2048, "tokens/s")
    >>> time = (tokens / rate).called("time", "s")
    >>> time.value, time.formula
    (2.0, 'tokens / rate')

The result of an operation has no name until `called` gives it one. Until then it is part of the
formula of what is computed from it.

Products and quotients combine the units of their operands (`overlapkit.plan.units`). Figures of
incompatible units cannot be added, subtracted or compared:

    >>> tokens + rate
    Traceback (most recent call last):
    overlapkit.plan.units.UnitError: tokens + rate: incompatible units tokens and tokens/s
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Union

import msgspec

from overlapkit.plan.units import UnitError, can_be_called, compatible, product, quotient

Operand = Union["Figure", int, float]

_SUM, _PRODUCT, _ATOM = range(3)
"""How tightly a formula binds. One that binds more loosely than its place needs brackets."""


class Figure(msgspec.Struct, frozen=True, gc=False):
    """A value with its derivation.

    A sweep makes a million of them; a Struct takes half the time of a dataclass.

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
        """The same value under a name, with a unit and a source if given.

        Raises:
            UnitError: the stated unit is not that of the computed value.
        """
        if unit is None:
            unit = self.unit
        elif unit != self.unit and not can_be_called(self.unit, unit):
            raise UnitError(f"{name}: stated in {_shown(unit)}, computed in {_shown(self.unit)}")
        if self.name:
            return Figure(self.value, unit, name, self.name, (self,), source)
        return Figure(self.value, unit, name, self.formula, self.inputs, source, self.binding)

    def __add__(self, other: Operand) -> Figure:
        return _sum(self, other, "+")

    def __radd__(self, other: Operand) -> Figure:
        return _sum(other, self, "+")

    def __sub__(self, other: Operand) -> Figure:
        return _sum(self, other, "-")

    def __rsub__(self, other: Operand) -> Figure:
        return _sum(other, self, "-")

    def __mul__(self, other: Operand) -> Figure:
        return _product(self, other)

    def __rmul__(self, other: Operand) -> Figure:
        return _product(other, self)

    def __truediv__(self, other: Operand) -> Figure:
        return _quotient(self, other)

    def __rtruediv__(self, other: Operand) -> Figure:
        return _quotient(other, self)

    def __lt__(self, other: Operand) -> bool:
        return _compared(self, other, "<") < 0

    def __le__(self, other: Operand) -> bool:
        return _compared(self, other, "<=") <= 0

    def __gt__(self, other: Operand) -> bool:
        return _compared(self, other, ">") > 0

    def __ge__(self, other: Operand) -> bool:
        return _compared(self, other, ">=") >= 0

    def __float__(self) -> float:
        return self.value


def given(name: str, value: float, unit: str = "", source: str = "") -> Figure:
    """A fact: a setting, a data-sheet figure, a constant."""
    return Figure(float(value), unit, name, source=source)


def literal(value: float, unit: str) -> Figure:
    """A number with its unit that formulas show as it is, such as the 2 FLOPs of a multiply-add."""
    return Figure(float(value), unit, formula=f"{value:g}")


def total(terms: Iterable[Operand], unit: str = "") -> Figure:
    """The sum; 0 in `unit` if there are no terms.

    Raises:
        UnitError: two terms have incompatible units.
    """
    result = None
    for term in terms:
        result = _figure(term) if result is None else result + term
    return literal(0, unit) if result is None else result


def largest(*operands: Operand) -> Figure:
    """The greatest of the operands.

    Raises:
        UnitError: two operands have incompatible units.
    """
    return _function("max", operands, max(map(_value, operands)))


def smallest(*operands: Operand) -> Figure:
    """The least of the operands.

    Raises:
        UnitError: two operands have incompatible units.
    """
    return _function("min", operands, min(map(_value, operands)))


def hypotenuse(*operands: Operand) -> Figure:
    """The square root of the sum of the operands' squares.

    Raises:
        UnitError: two operands have incompatible units.
    """
    return _function("hypot", operands, math.hypot(*map(_value, operands)))


def rounded_up(operand: Figure) -> Figure:
    """The smallest integer that is not below the operand."""
    return _function("ceil", (operand,), float(math.ceil(operand.value - 1e-9)))


def derivation(figure: Figure) -> dict[str, tuple[Figure, list[str]]]:
    """The figure and all that it was computed from, each once, with the names of its inputs.

    The figure itself comes first. Figures that share a name and differ in their derivation are
    numbered.
    """
    numbers = _Numbers()
    each = [one for _, one, before in _walk(figure, numbers) if not before]
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for one in each:
        name = one.name or one.formula
        count = taken[name] = taken.get(name, 0) + 1
        names[numbers.of(one)] = name if count == 1 else f"{name} #{count}"
    return {
        names[numbers.of(one)]: (one, [names[numbers.of(input_)] for input_ in one.inputs])
        for one in each
    }


def work(figure: Figure) -> Iterator[tuple[int, Figure, bool]]:
    """The derivation as a tree, root first: depth, figure, and whether it came before.

    The inputs of a figure that came before are not repeated. Figures that were derived in the same
    way from the same facts are one.
    """
    return _walk(figure, _Numbers())


class _Numbers:
    """Numbers figures: those with the same derivation have the same number."""

    def __init__(self) -> None:
        self._of_object: dict[int, int] = {}
        self._of_content: dict[tuple[Any, ...], int] = {}

    def of(self, figure: Figure) -> int:
        known = self._of_object.get(id(figure))
        if known is None:
            inputs = tuple(self.of(one) for one in figure.inputs)
            content = figure.name, figure.value, figure.unit, figure.formula, figure.source, inputs
            known = self._of_content.setdefault(content, len(self._of_content))
            self._of_object[id(figure)] = known
        return known


def _walk(figure: Figure, numbers: _Numbers) -> Iterator[tuple[int, Figure, bool]]:
    visited: set[int] = set()
    stack = [(0, figure)]
    while stack:
        depth, one = stack.pop()
        number = numbers.of(one)
        before = number in visited
        yield depth, one, before
        if not before:
            visited.add(number)
            stack += [(depth + 1, each) for each in reversed(one.inputs)]


def _figure(operand: Operand, unit: str = "") -> Figure:
    """The operand as a figure; a bare 0 is in `unit`, and every other bare number is plain."""
    if isinstance(operand, Figure):
        return operand
    return literal(operand, "" if operand else unit)


def _value(operand: Operand) -> float:
    return operand.value if isinstance(operand, Figure) else operand


def _unit(*operands: Operand) -> str:
    """The unit of the first operand that has one."""
    return next((one.unit for one in operands if isinstance(one, Figure) and one.unit), "")


def _sum(left: Operand, right: Operand, sign: str) -> Figure:
    if isinstance(left, Figure) and isinstance(right, Figure):
        a, b = left, right
        unit = a.unit or b.unit
    else:
        unit = _unit(left, right)
        a, b = _figure(left, unit), _figure(right, unit)
    if a.unit != b.unit and not compatible(a.unit, b.unit):
        raise _incompatible(a, b, sign)
    # a - (b + c) needs brackets where a + (b + c) does not.
    formula = f"{_term(a, _SUM)} {sign} {_term(b, _SUM + (sign == '-'))}"
    value = a.value + b.value if sign == "+" else a.value - b.value
    return Figure(value, unit, "", formula, _together(a, b), binding=_SUM)


def _product(left: Operand, right: Operand) -> Figure:
    a, b = _figure(left), _figure(right)
    unit = product(a.unit, b.unit) if a.unit and b.unit else a.unit or b.unit
    formula = f"{_term(a, _PRODUCT)} * {_term(b, _PRODUCT)}"
    return Figure(a.value * b.value, unit, "", formula, _together(a, b), binding=_PRODUCT)


def _quotient(left: Operand, right: Operand) -> Figure:
    a, b = _figure(left), _figure(right)
    unit = quotient(a.unit, b.unit) if b.unit else a.unit
    # a / (b * c) needs brackets where a * (b * c) does not.
    formula = f"{_term(a, _PRODUCT)} / {_term(b, _PRODUCT + 1)}"
    return Figure(a.value / b.value, unit, "", formula, _together(a, b), binding=_PRODUCT)


def _compared(left: Figure, right: Operand, sign: str) -> float:
    """Less than 0, 0, or more than 0; NaN as NaN, which no comparison holds for."""
    other = _figure(right, left.unit)
    if left.unit != other.unit and not compatible(left.unit, other.unit):
        raise _incompatible(left, other, sign)
    if left.value == other.value:
        # Equal infinities have no difference.
        return 0.0
    return left.value - other.value


def _incompatible(left: Figure, right: Figure, sign: str) -> UnitError:
    terms = f" {sign} ".join(_term(one, _ATOM) for one in (left, right))
    return UnitError(f"{terms}: incompatible units {_shown(left.unit)} and {_shown(right.unit)}")


def _shown(unit: str) -> str:
    return unit or "none"


def _term(figure: Figure, needed: int) -> str:
    if figure.name:
        return figure.name
    return f"({figure.formula})" if figure.binding < needed else figure.formula


def _function(name: str, operands: Iterable[Operand], value: float) -> Figure:
    unit = _unit(*operands)
    figures = [_figure(operand, unit) for operand in operands]
    for one in figures[1:]:
        if one.unit != figures[0].unit and not compatible(figures[0].unit, one.unit):
            raise _incompatible(figures[0], one, "and")
    terms = ", ".join(_term(figure, _SUM) for figure in figures)
    return Figure(float(value), unit, "", f"{name}({terms})", _merged(figures))


def _together(left: Figure, right: Figure) -> tuple[Figure, ...]:
    """`_merged` of two figures; most operations are on two, and add one input or none."""
    first = (left,) if left.name else left.inputs
    second = (right,) if right.name else right.inputs
    if not second or not first:
        return first or second
    if len(second) > 1:
        return _merged((left, right))
    new = second[0]
    for one in first:
        if one is new:
            return first
    return first + second


def _merged(figures: Iterable[Figure]) -> tuple[Figure, ...]:
    """The named figures among these and their operations, each once."""
    found: dict[int, Figure] = {}
    for figure in figures:
        for one in (figure,) if figure.name else figure.inputs:
            found.setdefault(id(one), one)
    return tuple(found.values())
