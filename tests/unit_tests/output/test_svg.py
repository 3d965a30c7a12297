"""What bars, timelines and axes are drawn from."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlapkit.output.svg import GRAIN, WIDTH, path, stacked, ticks


def boxes(drawn: str) -> list[tuple[float, float]]:
    found = re.findall(r"M([\d.]+) 0h([\d.]+)v1h-([\d.]+)z", drawn)
    assert "".join(f"M{a} 0h{w}v1h-{v}z" for a, w, v in found) == drawn
    assert all(w == v for _, w, v in found)
    return [(float(a), float(a) + float(w)) for a, w, _ in found]


def test_pieces_stand_behind_each_other_in_proportion() -> None:
    pieces = stacked([("a", "A", 30.0), ("b", "B", 0.0), ("c", "C", 20.0)], 100.0)
    assert [(p.kind, p.x, p.width) for p in pieces] == [("a", 0, 300), ("c", 300, 200)]


def test_a_negative_part_moves_nothing() -> None:
    first, second = stacked([("a", "A", 50.0), ("b", "B", -1.0), ("c", "C", 50.0)], 100.0)
    assert (first.width, second.x) == (500, 500)


def test_nothing_fills_a_bar_of_no_length() -> None:
    assert stacked([("a", "A", 0.0)], 0.0) == []


def test_spans_are_drawn_where_they_are() -> None:
    assert boxes(path([(0, 100), (500, 600)], 1000)) == [(0, 100), (500, 600)]
    assert boxes(path([(0, 100)], 1000, start=250)) == [(250, 350)]
    assert path([], 1000) == ""


def test_a_short_span_is_still_seen() -> None:
    ((start, end),) = boxes(path([(500_000, 500_001)], 1_000_000))
    assert start == 500
    assert end - start == pytest.approx(GRAIN)


spans = st.lists(st.integers(1, 1000), min_size=2, max_size=80).map(
    lambda gaps: [(sum(gaps[: i + 1]), sum(gaps[: i + 2])) for i in range(0, len(gaps) - 1, 2)]
)


@given(spans)
def test_no_span_is_lost_and_no_visible_gap_is_filled(given_spans: list[tuple[int, int]]) -> None:
    width = max(end for _, end in given_spans)
    scale = WIDTH / width
    drawn = boxes(path(given_spans, width))
    rounding = 0.11
    for start, end in given_spans:
        assert any(a - rounding <= start * scale and end * scale <= b + rounding for a, b in drawn)
    for (_, end), (start, _) in pairwise(given_spans):
        middle = (end + start) / 2 * scale
        if (start - end) * scale > 2 * GRAIN:
            assert not any(a < middle < b for a, b in drawn)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_ticks_are_round_and_enclose_the_range(one: float, other: float) -> None:
    least, most = sorted((one, other))
    found = ticks(least, most)
    assert found[0] <= least * (1 + 1e-9)
    assert found[-1] >= most * (1 - 1e-9)
    assert 2 <= len(found) <= 8
    step = found[1] - found[0]
    digits = f"{step:.3e}".partition("e")[0]
    assert digits in ("1.000", "2.000", "2.500", "5.000")
