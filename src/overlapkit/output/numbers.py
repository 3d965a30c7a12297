"""Numbers and values as text, with the unit in the name of the function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A value that JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: plain(v) for k, v in dataclasses.asdict(value).items() if v is not None}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def short(value: Any) -> str:
    """A value in a table cell: a configuration of ten GEMMs is not spelt out."""
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
    """A reason as a sentence: capital first, no final stop; a knob's name keeps its case."""
    first = text.partition(" ")[0]
    return (text if set(first) & set("_.=") else text[:1].upper() + text[1:]).rstrip(".")


def imperative(text: str) -> str:
    """A remedy as it follows an arrow: small first letter, no final stop."""
    return (text[:1].lower() + text[1:]).rstrip(".")


def ms(us: float | None) -> str:
    """Microseconds as milliseconds, with as many digits as matter."""
    if us is None:
        return "-"
    value = us / 1000
    return (
        f"{value:,.3f}"
        if abs(value) < 10
        else f"{value:,.2f}"
        if abs(value) < 100
        else f"{value:,.1f}"
    )


def pct(value: float | None) -> str:
    """A percentage with one digit."""
    return "-" if value is None else f"{value:.1f} %"


def setting(value: Any) -> str:
    """A setting's value as people write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def size(count: int | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
