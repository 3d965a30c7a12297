"""Numbers and values as text, with the unit in the name of the function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import isfinite
from typing import Any


def plain(value: Any) -> Any:
    """A value of the types that JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: plain(v) for k, v in dataclasses.asdict(value).items() if v is not None}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def setting_text(value: Any) -> str:
    """A value in a table cell: the settings of ten GEMMs are shown as ``given``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, (dict, list, tuple)) or hasattr(value, "__dataclass_fields__"):
        return "given"
    return str(value)


def sentence(text: str) -> str:
    """A reason as a sentence: capital first, no final period; a knob's name keeps its case."""
    first = text.partition(" ")[0]
    return (text if set(first) & set("_.=") else text[:1].upper() + text[1:]).rstrip(".")


def imperative(text: str) -> str:
    """A remedy as it follows an arrow: lower-case first letter, no final period."""
    return (text[:1].lower() + text[1:]).rstrip(".")


def ms_of_us(us: float | None) -> str:
    """Microseconds as milliseconds, to the microsecond below 10 ms and coarser above."""
    return "-" if us is None else _decimals(us / 1e3, 4, least=1)


def signed_ms_of_us(us: float) -> str:
    """A change in microseconds as milliseconds with its sign."""
    return f"{'+' if us >= 0 else '-'}{ms_of_us(abs(us))}"


def ms_of_s(seconds: float | None) -> str:
    """Seconds as milliseconds, with three digits: what an estimate is worth."""
    return "-" if seconds is None else _decimals(1e3 * seconds, 3)


def ms_of_ms(value: float | None) -> str:
    """Milliseconds with two digits: what a clock on a shared machine is worth."""
    return "-" if value is None else _decimals(value, 2)


def mb(value: float | None) -> str:
    """Megabytes with two digits."""
    return "-" if value is None else _decimals(value, 2)


def percent(value: float | None) -> str:
    """A percentage with one digit after the point."""
    return "-" if value is None else f"{value:.1f} %"


def share_percent(share: float) -> str:
    """A share as a percentage with three digits."""
    return f"{_decimals(100 * share, 3)} %"


def binary_bytes(count: int | None) -> str:
    """Bytes in binary units, such as 1.5 GiB."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def thousands(value: float | None) -> str:
    """A figure as it is, with its thousands separated."""
    return "-" if value is None else f"{value:,}"


def rounded_ms(seconds: float) -> float:
    """Seconds as milliseconds, with four digits below a second: estimates in JSON documents."""
    value = 1e3 * seconds
    return round(value, 1) if value >= 1000 else float(f"{value:.4g}")


def rounded_gb(count: float) -> float:
    """Bytes as GB of 10^9 bytes: estimates in JSON documents."""
    return round(count / 1e9, 1)


def us_of_ns(ns: float) -> float:
    """Nanoseconds as microseconds, to the nanosecond: times in the JSON documents."""
    return round(ns / 1000, 3)


def _decimals(value: float, digits: int, *, least: int = 0) -> str:
    """`value` with `digits` significant digits; whole digits are all shown.

    Args:
        value: the figure.
        digits: significant digits, at least one of them before the point.
        least: digits after the point that are always shown.
    """
    if not isfinite(value):
        return str(value)
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(least, digits - whole)}f}"


FILTERS = {
    f.__name__: f
    for f in (
        ms_of_us,
        signed_ms_of_us,
        ms_of_ms,
        ms_of_s,
        mb,
        percent,
        binary_bytes,
        thousands,
        setting_text,
        sentence,
        imperative,
    )
}
"""What every page's templates can use, under the same names."""
