"""What ranks measure, and what they say of it."""

from __future__ import annotations

import msgspec

from overlapkit.plan.rates.document import (
    RatesAttention,
    RatesCollective,
    RatesGemm,
    RatesMemory,
)

JOB_FILE = "calibrate-job.json"
RESULT_FILE = "calibrate-result.json"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure; the times in its rows are not read.

    Attributes:
        device: "cpu" or "cuda".
        budget_s: seconds for all of it; what is left over then is not measured.
        gemms, attention, collectives: shapes, the most important ones first.
        stream_bytes: sizes of what memory-bound kernels read and write, two of them.
    """

    device: str
    budget_s: float
    gemms: list[RatesGemm]
    attention: list[RatesAttention]
    collectives: list[RatesCollective]
    stream_bytes: tuple[int, int]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What rank 0 measured.

    Attributes:
        name: of the device.
        torch: its version.
        gemms, attention, collectives: the rows with their times.
        memory: of streaming kernels.
        unread: what was not measured, with how often.
    """

    name: str
    torch: str
    gemms: list[RatesGemm]
    attention: list[RatesAttention]
    collectives: list[RatesCollective]
    memory: list[RatesMemory]
    unread: dict[str, int]
