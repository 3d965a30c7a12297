"""Figures: what is written down is what was computed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given as sample
from hypothesis import strategies as st

from overlapkit.plan.figure import (
    Figure,
    derivation,
    given,
    largest,
    rounded_up,
    smallest,
    total,
    work,
)

LEAVES = {name: given(name, value) for name, value in {"a": 3.0, "b": 0.5, "c": 7.25}.items()}


def _combined(children: st.SearchStrategy[Figure]) -> st.SearchStrategy[Figure]:
    pair = st.tuples(children, children)
    return st.one_of(
        pair.map(lambda p: p[0] + p[1]),
        pair.map(lambda p: p[0] - p[1]),
        pair.map(lambda p: p[0] * p[1]),
        pair.filter(lambda p: p[1].value != 0).map(lambda p: p[0] / p[1]),
        pair.map(lambda p: largest(*p)),
        pair.map(lambda p: smallest(*p)),
        children.map(lambda one: 2 * one),
        children.map(lambda one: 1 - one),
    )


@sample(st.recursive(st.sampled_from(list(LEAVES.values())), _combined, max_leaves=12))
def test_a_formula_evaluates_to_the_value(figure: Figure) -> None:
    values = {name: leaf.value for name, leaf in LEAVES.items()}
    text = figure.name or figure.formula
    assert eval(text, {"max": max, "min": min}, values) == pytest.approx(figure.value)
    named = {one.name for one in ((figure,) if figure.name else figure.inputs)}
    assert {name for name in LEAVES if name in text.replace("max", "")} == named


def test_a_name_replaces_the_formula() -> None:
    time = (given("work", 6, "FLOP") / given("rate", 2, "FLOP/s")).called("time", "s")
    assert (time.formula, time.value, time.unit) == ("work / rate", 3, "s")
    twice = time + time
    assert twice.formula == "time + time"
    assert [one.name for one in twice.inputs] == ["time"]
    assert twice.unit == "s"


def test_renaming_keeps_the_derivation() -> None:
    renamed = given("a", 2, "s").called("b")
    assert (renamed.name, renamed.formula, renamed.unit) == ("b", "a", "s")


def test_a_shared_input_is_derived_once() -> None:
    shared = (given("x", 1) + given("y", 2)).called("shared")
    root = ((shared * 2).called("left") + (shared * 3).called("right")).called("root")
    shown = [(depth, one.name, before) for depth, one, before in work(root)]
    assert shown == [
        (0, "root", False),
        (1, "left", False),
        (2, "shared", False),
        (3, "x", False),
        (3, "y", False),
        (1, "right", False),
        (2, "shared", True),
    ]


def test_figures_that_share_a_name_are_numbered() -> None:
    one, other = given("size", 1), given("size", 2)
    figures = derivation((one + other).called("sum"))
    _, inputs = figures["sum"]
    assert [figures[name][0].value for name in inputs] == [1, 2]
    assert next(iter(figures)) == "sum"


def test_totals_and_rounding() -> None:
    assert total([]).value == 0
    assert total([given("a", 1), given("b", 2)]).formula == "a + b"
    assert rounded_up(given("a", 2.2)).value == math.ceil(2.2)
