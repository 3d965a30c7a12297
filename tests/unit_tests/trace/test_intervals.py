"""The interval algebra against a brute-force oracle: a set of cells on a microsecond grid."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from overlapkit.trace.intervals import Spans, both, distinct, either, minus, shares, union

SPAN = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))
SPANS = st.lists(SPAN, max_size=14)


def cells(pairs: list[tuple[int, int]]) -> set[int]:
    return {cell for a, b in pairs for cell in range(a, b)}


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def made(pairs: list[tuple[int, int]]) -> Spans:
    return union(*columns(pairs))


def of(spans: Spans) -> set[int]:
    return cells(list(zip(spans.start.tolist(), spans.end.tolist(), strict=True)))


def is_canonical(spans: Spans) -> bool:
    gaps = spans.start[1:] > spans.end[:-1]
    return bool((spans.end > spans.start).all() and gaps.all())


@given(SPANS, SPANS)
def test_set_operations_are_those_of_the_cells(a, b):
    x, y = made(a), made(b)
    for result, expected in (
        (x, cells(a)),
        (both(x, y), cells(a) & cells(b)),
        (minus(x, y), cells(a) - cells(b)),
        (either(x, y), cells(a) | cells(b)),
    ):
        assert of(result) == expected
        assert result.total == len(expected)
        assert is_canonical(result)


@given(SPANS, st.lists(SPAN, max_size=5))
def test_measure_inside_windows(a, windows):
    start, end = columns(windows)
    expected = [len(cells(a) & set(range(lo, hi))) for lo, hi in windows]
    assert made(a).within(start, end).tolist() == expected


@given(SPANS)
def test_shares_are_disjoint_and_add_up_to_the_union(a):
    start, end, owner = shares(*columns(a))
    pieces = list(zip(start.tolist(), end.tolist(), strict=True))
    assert sum(hi - lo for lo, hi in pieces) == len(cells(pieces)) == len(cells(a))
    assert cells(pieces) == cells(a)
    for (lo, hi), who in zip(pieces, owner.tolist(), strict=True):
        assert a[who][0] <= lo and hi <= a[who][1]


@given(st.lists(st.integers(-5, 5), max_size=20))
def test_distinct_is_numpys_unique(values):
    array = np.asarray(values, dtype=np.int64)
    unique, index = distinct(array)
    assert unique.tolist() == sorted(set(values))
    assert unique[index].tolist() == values


def test_large_times_keep_their_nanoseconds():
    base = 1_790_857_026_000_000_000
    spans = made([(base, base + 1), (base + 1, base + 3)])
    assert (spans.total, len(spans)) == (3, 1)
