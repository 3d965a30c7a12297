"""Times and identifiers of individual events, as profilers write them."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

EXACT_DOUBLE_US = float(1 << 43)
"""Microseconds below which a double still distinguishes nanoseconds (its step is 2**-10 there)."""

LIMIT_US = 4e15
"""Microseconds beyond which a time is invalid: after the year 2096, counted from 1970."""

LONGEST_US = 3.6e9
"""Microseconds, one hour: no kernel runs longer."""


def literal_ns(text: bytes) -> int | None:
    """Nanoseconds from the digits of a number of microseconds; None where it is not a number."""
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


def one_ns(value: Any) -> int | None:
    """Nanoseconds from microseconds of any type; None where they are not a time."""
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) > LIMIT_US:
            return None
        whole = math.floor(value)
        return whole * 1000 + round((value - whole) * 1000)
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 1000 if abs(value) <= LIMIT_US else None
    if isinstance(value, str):
        return literal_ns(value.encode(errors="replace"))
    if isinstance(value, msgspec.Raw):
        return literal_ns(bytes(value))
    return None


def usable_ns(ts: Any, dur: Any) -> tuple[int, int] | None:
    """Start and end of an event; None without a possible time and duration."""
    start, length = one_ns(ts), one_ns(dur)
    if start is None or length is None or length < 0:
        return None
    return start, start + length


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
