"""The values nearest to one that does not do, as a remedy names them."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(wanted: int, values: Iterable[int], most: int = 3) -> list[int]:
    """The values next to one, the nearest first and of two as near the larger."""
    return sorted(set(values), key=lambda value: (abs(value - wanted), -value))[:most]


def divisors(number: int) -> list[int]:
    """Every divisor of a number above 0, the smallest first."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def would_do(values: list[int], what: str) -> str:
    """The end of a reason: "; 4, 2 or 8 stages would do"; empty without any.

    Args:
        values: those that would do.
        what: what they count, in the plural; empty for nothing.
    """
    if not values:
        return ""
    words = [str(value) for value in values]
    what = what.removesuffix("s") if values == [1] else what
    listed = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return f"; {listed}{f' {what}' if what else ''} would do"
