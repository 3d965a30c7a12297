"""Turns columns of microseconds, as profilers write them, into exact integer nanoseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Ints
from overlapkit.trace.read.timestamps import LIMIT_US, integer, one_ns


def column_ns(values: Sequence[Any]) -> tuple[Ints, NDArray[np.bool_]]:
    """A column of microseconds in nanoseconds, and which of them are usable."""
    try:
        # None becomes NaN; other values that are not numbers raise an error.
        floats = np.asarray(values, dtype=np.float64) if _all_numbers(values) else None
    except (TypeError, ValueError, OverflowError):
        floats = None
    if floats is None:
        exact = [one_ns(value) for value in values]
        usable = np.asarray([v is not None for v in exact], dtype=np.bool_)
        return np.asarray([0 if v is None else v for v in exact], dtype=np.int64), usable
    usable = np.isfinite(floats) & (np.abs(floats) <= LIMIT_US)
    floats = np.where(usable, floats, 0.0)
    # In two parts, since the product with 1000 would be rounded again.
    whole = np.floor(floats)
    fraction = np.rint((floats - whole) * 1000.0)
    return whole.astype(np.int64) * 1000 + fraction.astype(np.int64), usable


def whole_numbers(values: Sequence[Any]) -> Ints:
    """A column of identifiers; -1 where one is unknown or negative."""
    if {type(v) for v in values} <= {int}:
        try:
            column = np.asarray(values, dtype=np.int64)
            return np.maximum(column, -1)
        except OverflowError:
            pass
    known = [integer(v) for v in values]
    return np.asarray([-1 if v is None or v < 0 else v for v in known], dtype=np.int64)


def whole_ns(values: Sequence[int]) -> tuple[Ints, NDArray[np.bool_]]:
    """A column of nanoseconds, and which of them are usable."""
    usable = np.asarray([abs(v) <= LIMIT_US * 1000 for v in values], dtype=np.bool_)
    fitting = [v if ok else 0 for v, ok in zip(values, usable.tolist(), strict=True)]
    return np.asarray(fitting, dtype=np.int64), usable


def _all_numbers(values: Sequence[Any]) -> bool:
    return {type(v) for v in values} <= {float, int, type(None)}
