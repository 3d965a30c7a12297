"""Units: what may be added or compared, and what a product is measured in."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given as sample
from hypothesis import strategies as st

from overlapkit.plan.figure import Figure, given, largest, literal, smallest, total
from overlapkit.plan.units import COUNTS, UnitError, compatible, measures, product, quotient

MEASURES = ("s", "B", "FLOP", "J")
WORDS = st.sampled_from([*MEASURES, *sorted(COUNTS)])


@st.composite
def units(draw: st.DrawFn) -> str:
    """A unit of a few words, above and below the line."""
    unit = ""
    for word in draw(st.lists(WORDS, max_size=3)):
        unit = product(unit, word)
    for word in draw(st.lists(WORDS, max_size=2)):
        unit = quotient(unit, word)
    return unit


@sample(units(), units(), units())
def test_products_of_units_are_those_of_numbers(a: str, b: str, c: str) -> None:
    assert product(a, b) == product(b, a)
    assert product(product(a, b), c) == product(a, product(b, c))
    assert quotient(product(a, b), b) == product(a, "")
    assert quotient(a, quotient(b, c)) == quotient(product(a, c), b)
    assert quotient(a, a) == ""


@sample(units(), units())
def test_compatibility_is_mutual_and_keeps_measures(a: str, b: str) -> None:
    assert compatible(a, a)
    assert compatible(a, b) == compatible(b, a)
    if compatible(a, b):
        assert measures(a) == measures(b)


@sample(st.sampled_from(MEASURES), units(), st.floats(1, 9), st.floats(1, 9))
def test_incompatible_measures_are_never_combined(word: str, unit: str, x: float, y: float) -> None:
    one, other = given("one", x, unit), given("other", y, product(unit, word))
    for combine in (
        lambda: one + other,
        lambda: one - other,
        lambda: other - one,
        lambda: largest(one, other),
        lambda: smallest(other, one),
        lambda: total([one, one, other]),
        lambda: one < other,
        lambda: one <= other,
        lambda: one > other,
        lambda: one >= other,
        lambda: max([one, other]),
    ):
        with pytest.raises(UnitError) as caught:
            combine()
        for shown in (one.unit, other.unit):
            assert f" {shown or 'none'} " in f" {caught.value} "


@sample(units(), st.floats(-9, 9), st.floats(-9, 9))
def test_equal_units_are_combined_and_kept(unit: str, x: float, y: float) -> None:
    one, other = given("one", x, unit), given("other", y, unit)
    for result, value in (
        (one + other, x + y),
        (one - other, x - y),
        (largest(one, other), max(x, y)),
        (smallest(one, other), min(x, y)),
        (total([one, other]), x + y),
    ):
        assert (result.value, result.unit) == (value, unit)
    assert (one < other, one <= other, one > other, one >= other) == (x < y, x <= y, x > y, x >= y)


@sample(units(), st.integers(1, 9), units(), st.integers(1, 9))
def test_values_and_units_are_multiplied_together(a: str, x: int, b: str, y: int) -> None:
    one, other = given("one", x, a), given("other", y, b)
    assert ((one * other).value, (one * other).unit) == (x * y, product(a, b))
    assert (one / other).unit == quotient(a, b)
    assert (one / other).value == pytest.approx(float(Fraction(x, y)))


def test_a_rate_times_a_time_is_an_amount() -> None:
    rate, time = given("rate", 4, "B/s"), given("time", 3, "s")
    assert (rate * time).unit == "B"
    assert (given("bytes", 12, "B") / rate + time).unit == "s"
    assert (1 / given("period", 2, "s")).unit == "1/s"
    # A watt is a joule per second.
    assert compatible((given("power", 6, "W") / given("energy", 2, "J/FLOP")).unit, "FLOP/s")


def test_a_bare_number_is_added_to_numbers_and_counts_alone() -> None:
    stages, time = given("PP", 4, "stages"), given("time", 3, "s")
    assert ((stages - 1).value, (1 + stages).value) == (3, 5)
    for refused in (lambda: time + 1, lambda: 1 - time, lambda: largest(time, 1), lambda: time > 1):
        with pytest.raises(UnitError):
            refused()
    # Nothing is the same in every unit.
    assert largest(time - 5 * time, 0).value == 0 and largest(time, 0).unit == "s"
    assert time > 0 and not time < 0


def test_a_count_says_what_is_counted() -> None:
    tokens, ranks = given("tokens", 8, "tokens"), given("ranks", 2, "ranks")
    with pytest.raises(UnitError, match="tokens and ranks"):
        tokens + ranks
    assert (tokens + given("number", 1)).unit == "tokens"
    each = (tokens * literal(2, "B")).called("activation", "B")
    assert each.unit == "B" and each.formula == "tokens * 2"


def test_a_name_keeps_the_measure() -> None:
    sent, rate = given("sent", 6, "B"), given("rate", 2, "B/s")
    assert (sent / rate).called("time").unit == "s"
    with pytest.raises(UnitError, match="time: stated in B, computed in s"):
        (sent / rate).called("time", "B")
    with pytest.raises(UnitError, match="computed in none"):
        (sent / sent).called("time", "s")


def test_no_terms_add_up_to_nothing_in_the_stated_unit() -> None:
    none: list[Figure] = []
    time = total(none, "s")
    assert (time.value, time.unit, time.formula) == (0, "s", "0")
    assert (time + given("hop", 1, "s")).value == 1
