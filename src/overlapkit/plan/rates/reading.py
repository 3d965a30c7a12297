"""Reads and checks a file of measured rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from overlapkit.errors import InputError
from overlapkit.hardware import find_gpu
from overlapkit.plan.rates.document import RatesAttention, RatesCollective, RatesDocument, RatesGemm

PRECISIONS = ("bf16", "fp8", "mxfp8", "nvfp4", "fp32")
"""Kinds of rates, as `overlapkit.plan.workload.precision.Precision.rate`."""


def read_rates(path: str, option: str = "--rates") -> RatesDocument:
    """The rates in a file.

    Args:
        path: the file.
        option: that names it, for messages.

    Raises:
        InputError: it cannot be read, or is no such file.
    """
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=RatesDocument)
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{option} {path}: {error}; want a file of overlapkit plan calibrate or overlapkit "
            "lab calibrate (overlapkit schema rates)"
        ) from None
    for place, fault in _faults(found):
        raise InputError(f"{option} {path}: {place}: {fault}")
    return found


def _faults(rates: RatesDocument) -> list[tuple[str, str]]:
    found = []
    measured: dict[str, Sequence[RatesGemm | RatesAttention]] = {
        "gemms": rates.gemms,
        "attention": rates.attention,
    }
    for name, rows in measured.items():
        for number, row in enumerate(rows):
            if row.precision not in PRECISIONS:
                found.append(
                    (
                        f"{name}[{number}].precision",
                        f"{row.precision!r} is not known; give one of {', '.join(PRECISIONS)}",
                    )
                )
            if (row.seconds is None) == (row.tflops is None):
                found.append((f"{name}[{number}]", "give seconds or tflops, one of them"))
    for number, one in enumerate(rates.collectives):
        fault = _fault_of_collective(one)
        if fault is not None:
            found.append((f"collectives[{number}]", fault))
    return found


def _fault_of_collective(one: RatesCollective) -> str | None:
    measured = one.bytes is not None and one.seconds is not None
    if measured == (one.bus_gb_s is not None) or (one.bytes is None) != (one.seconds is None):
        return "give bytes and seconds of a message, or bus_gb_s of a law"
    if measured and (one.ranks is None or one.ranks < 2):
        return "a message needs ranks, 2 or more"
    return None


def check_gpu(rates: RatesDocument, gpu: str, option: str) -> None:
    """Whether the rates are of a GPU.

    Args:
        rates: what was measured.
        gpu: what is planned for, by its short name.
        option: and file, for the message.

    Raises:
        InputError: they are of another.
    """
    if rates.gpu == "cpu":
        raise InputError(f"{option}: measured on a CPU; measure on the GPU that is planned for")
    measured, _ = find_gpu(rates.gpu)
    if measured != gpu:
        raise InputError(
            f"{option}: measured on {measured}, but --gpu is {gpu}; give --gpu {measured}"
        )
