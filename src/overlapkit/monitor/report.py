"""What the monitor reports of a few profiled steps."""

from __future__ import annotations

from msgspec import Struct

from overlapkit.output.numbers import ms_of_us, signed_ms_of_us

NOTABLE = 0.01
"""Share of the step from which a cause of idle time is printed."""


class Finding(Struct, frozen=True, kw_only=True):
    """A cause of lost time, as in the document of `overlapkit trace`.

    Attributes:
        id: its stable name.
        message: what the profile shows, in one sentence.
        remedy: what to try.
        cost_us: time per step that it accounts for.
        confidence: "likely" or "possible".
    """

    id: str
    message: str
    remedy: str
    cost_us: float
    confidence: str


class Regression(Struct, frozen=True, kw_only=True):
    """A step that is longer than those of earlier reports, by more than they differ.

    Attributes:
        step_us: the step.
        usual_us: the median step of the earlier reports.
        spread_us: their median absolute deviation, times 1.4826: the standard deviation if they
            are normally distributed.
        part: the part that grew most: "compute", "exposed communication", "exposed memory" or
            "idle".
        part_us: how much that part is above its median.
        detail: the dimension, or the cause of idle time, that grew most within the part; empty
            where none is known.
    """

    step_us: float
    usual_us: float
    spread_us: float
    part: str
    part_us: float
    detail: str

    def __str__(self) -> str:
        named = f"{self.part} ({self.detail})" if self.detail else self.part
        return (
            f"Slower than before: {ms_of_us(self.step_us)} ms, usually "
            f"{ms_of_us(self.usual_us)} ms; {named} {signed_ms_of_us(self.part_us)} ms"
        )


class OverlapReport(Struct, frozen=True, kw_only=True):
    """The median of a few profiled steps of one rank. Times are in microseconds.

    The parts are as in the document of `overlapkit trace`.

    Attributes:
        step: number of the last profiled step.
        steps: how many steps were profiled.
        rank: the rank of this process.
        step_us: length of a step.
        compute_us: kernels that are neither communication nor copies.
        exposed_comm_us: communication while nothing computes.
        hidden_comm_us: communication while something computes.
        exposed_memory_us: copies and memsets while neither compute nor communication runs.
        idle_us: no device work at all.
        waiting_for_data_us: the part of `idle_us` while the host waits for the next batch.
        waiting_for_host_us: the part of `idle_us` until the host launches the next work.
        exposed_by_dimension: exposed communication of each parallel dimension. Two can be exposed
            at once, so they need not add up to `exposed_comm_us`.
        findings: the causes of lost time, the costliest first.
        doubts: why the figures cannot be relied on; empty where nothing speaks against them.
        warnings: what was omitted or assumed.
        stall_us: how long starting and stopping the profiler held up the training, in total.
        skipped: windows that were not profiled or not reported, since the start.
        regression: whether the step is longer than in earlier reports; None where it is not, or
            where there are fewer than three.
    """

    step: int
    steps: int
    rank: int
    step_us: float
    compute_us: float
    exposed_comm_us: float
    hidden_comm_us: float
    exposed_memory_us: float
    idle_us: float
    waiting_for_data_us: float
    waiting_for_host_us: float
    exposed_by_dimension: dict[str, float]
    findings: list[Finding]
    doubts: list[str]
    warnings: list[str]
    stall_us: float = 0.0
    skipped: int = 0
    regression: Regression | None = None

    def __str__(self) -> str:
        dimensions = [
            f"{d} {ms_of_us(us)}" for d, us in self.exposed_by_dimension.items() if us > 0
        ]
        waits = [
            f"{ms_of_us(us)} {what}"
            for us, what in (
                (self.waiting_for_data_us, "waiting for data"),
                (self.waiting_for_host_us, "waiting for the host"),
            )
            if us > NOTABLE * self.step_us
        ]
        lines = [
            f"step {self.step}, rank {self.rank}: {ms_of_us(self.step_us)} ms = "
            f"compute {ms_of_us(self.compute_us)} + "
            f"exposed communication {ms_of_us(self.exposed_comm_us)}{_of(dimensions)} + "
            f"exposed memory {ms_of_us(self.exposed_memory_us)} + "
            f"idle {ms_of_us(self.idle_us)}{_of(waits)}",
            *([f"  {self.regression}"] if self.regression else []),
            *(f"  {doubt}" for doubt in self.doubts),
        ]
        if self.findings:
            first = self.findings[0]
            lines += [f"  {first.message} ({ms_of_us(first.cost_us)} ms)", f"  -> {first.remedy}"]
        return "\n".join(lines)


def _of(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""
