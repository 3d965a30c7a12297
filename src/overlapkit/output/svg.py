"""Bars and timelines as figures that a template can draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, floor, log10

WIDTH = 1000
"""The width of every bar and every timeline, in its own units."""

GRAIN = 0.4
"""In units of `WIDTH`: spans closer together than this are drawn as one, and no span is drawn
narrower. A page is about 900 pixels wide, so this is less than half a pixel."""


@dataclass(frozen=True)
class Piece:
    """One part of a bar: color class, meaning, and its position in units of `WIDTH`."""

    kind: str
    title: str
    x: float
    width: float


def stacked(parts: Iterable[tuple[str, str, float]], longest: float) -> list[Piece]:
    """Parts of a bar, one after the other.

    Args:
        parts: color class, title and length of each; a part without length is omitted.
        longest: the length that fills the width.
    """
    pieces = []
    x = 0.0
    for kind, title, length in parts:
        width = max(0.0, length) / (longest or 1.0) * WIDTH
        if width:
            pieces.append(Piece(kind, title, round(x, 2), round(width, 2)))
        x += width
    return pieces


def path(spans: Iterable[tuple[int, int]], span: float, start: int = 0) -> str:
    """An SVG path of boxes of height 1, one for each group of spans closer than `GRAIN`.

    Args:
        spans: sorted starts and ends.
        span: the time that fills `WIDTH`.
        start: is added to every start and end.
    """
    scale = WIDTH / (span or 1)
    boxes = _merged(((start + a) * scale, (start + b) * scale) for a, b in spans)
    return "".join(f"M{a:.1f} 0h{b - a:.1f}v1h{a - b:.1f}z" for a, b in boxes)


def _merged(boxes: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    low: float | None = None
    high = 0.0
    for a, b in boxes:
        if low is None:
            low, high = a, b
        elif a - high < GRAIN:
            high = max(high, b)
        else:
            yield low, max(high, low + GRAIN)
            low, high = a, b
    if low is not None:
        yield low, max(high, low + GRAIN)


def ticks(least: float, most: float) -> list[float]:
    """Round numbers around a range, about six of them, at distances of 1, 2, 2.5 or 5."""
    # A range of nothing still gets an axis.
    rough = max(most - least, most / 50, 1e-9) / 5
    magnitude = 10.0 ** floor(log10(rough))
    step = next(f * magnitude for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * magnitude >= rough)
    first, last = floor(least / step), ceil(most / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
