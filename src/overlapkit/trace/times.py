"""Microseconds as profilers write them, turned into exact integer nanoseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Ints

EXACT_DOUBLE_US = float(1 << 43)
"""Microseconds below which a double still tells nanoseconds apart (its step is 2**-10 there)."""

LIMIT_US = 4e15
"""Microseconds beyond which a time is no time: past the year 2096 since 1970."""

LONGEST_US = 3.6e9
"""Microseconds, an hour: no kernel runs longer."""


def literal_ns(text: bytes) -> int | None:
    """Nanoseconds from the digits of a number of microseconds; None where it is none."""
    text = text.strip(b'" \t\r\n')
    whole, _, fraction = text.partition(b".")
    if len(fraction) <= 3 and whole.isdigit() and len(whole) < 16:
        if not fraction:
            return int(whole) * 1000
        if fraction.isdigit():
            return int(whole) * 1000 + int(fraction.ljust(3, b"0"))
    try:
        value = Decimal(text.decode("ascii"))
    except (InvalidOperation, UnicodeDecodeError, ValueError):
        return None
    if not value.is_finite() or abs(value) > LIMIT_US:
        return None
    return int((value * 1000).to_integral_value())


def _one_ns(value: Any) -> int | None:
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) > LIMIT_US:
            return None
        whole = math.floor(value)
        return whole * 1000 + round((value - whole) * 1000)
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 1000 if abs(value) <= LIMIT_US else None
    if isinstance(value, str):
        return literal_ns(value.encode())
    if isinstance(value, msgspec.Raw):
        return literal_ns(bytes(value))
    return None


def usable_ns(ts: Any, dur: Any) -> tuple[int, int] | None:
    """Start and end of one event; None where it has no time or no duration that can be."""
    start, length = _one_ns(ts), _one_ns(dur)
    if start is None or length is None or length < 0:
        return None
    return start, start + length


def column_ns(values: Sequence[Any]) -> tuple[Ints, NDArray[np.bool_]]:
    """A column of microseconds as nanoseconds, and which of them are usable."""
    try:
        # None becomes NaN; anything but numbers raises.
        floats = np.asarray(values, dtype=np.float64) if _all_numbers(values) else None
    except (TypeError, ValueError, OverflowError):
        floats = None
    if floats is None:
        exact = [_one_ns(value) for value in values]
        usable = np.asarray([v is not None for v in exact], dtype=np.bool_)
        return np.asarray([0 if v is None else v for v in exact], dtype=np.int64), usable
    usable = np.isfinite(floats) & (np.abs(floats) <= LIMIT_US)
    floats = np.where(usable, floats, 0.0)
    # In two parts: their product with 1000 would round once more.
    whole = np.floor(floats)
    fraction = np.rint((floats - whole) * 1000.0)
    return whole.astype(np.int64) * 1000 + fraction.astype(np.int64), usable


def integer(value: Any) -> int | None:
    """An integer from 7, 7.0, "7" or "stream 7"; None from anything else, or beyond 62 bits."""
    if type(value) is int:
        return value if -(1 << 62) < value < 1 << 62 else None
    if isinstance(value, str):
        digits = value.rpartition(" ")[2]
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return None


def whole_numbers(values: Sequence[Any]) -> Ints:
    """A column of identifiers, -1 where one is not known or negative."""
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
