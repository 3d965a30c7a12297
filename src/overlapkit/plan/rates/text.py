"""What a file of rates contains, as plain lines."""

from __future__ import annotations

from collections.abc import Iterator

from overlapkit.plan.rates.document import RatesDocument


def rates_lines(rates: RatesDocument, out: str) -> Iterator[str]:
    """What a file of rates contains, and what could not be measured.

    Args:
        rates: the file.
        out: where it was written.
    """
    yield f"{out}: rates of {rates.gpu}"
    for what, rows in (
        ("matrix products", rates.gemms),
        ("passes of attention", rates.attention),
        ("collectives", rates.collectives),
    ):
        measured = sum(row.count for row in rows)
        yield f"{what}: {len(rows)} shapes, measured {measured} times"
    if rates.memory:
        yield f"memory-bound kernels: {len(rates.memory)} kinds"
    yield from unread_lines(rates)
    if rates.gpu == "cpu":
        yield "note: rates of a CPU are not rates of a GPU; plan takes only a GPU's"
    else:
        yield f"To use them: overlapkit plan CONFIG --gpu {rates.gpu} --rates {out}"


def unread_lines(rates: RatesDocument) -> Iterator[str]:
    """What could not be measured."""
    for what, count in rates.unread.items():
        yield f"not measured: {count} x {what}"
