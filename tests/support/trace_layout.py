"""Lays out the device work of Megatron-like training steps in time, for several ranks at once.

Streams are queues: an event starts when its stream is free and the events that it waits for have
ended. Collectives end at the same time on all ranks, when the last rank has joined and the data has
moved. Every timestamp is a multiple of the scenario's grid.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

from support import trace_names as names
from support.trace_scenario import Scenario
from support.trace_truth import COMMUNICATION, COMPUTE, MEMORY

COMPUTE_STREAM, COPY_STREAM = 7, 16
STREAMS = {
    "TP": 20,
    "DP": 24,
    "CP": 28,
    "PP send": 32,
    "PP recv": 36,
    "EP": 40,
    "embedding": 44,
    "other": 48,
    "userbuffers": 52,
}
# Bytes per nanosecond that a collective of this dimension moves. Sizes follow from durations.
BANDWIDTH = {"TP": 300, "DP": 90, "PP": 40, "CP": 120, "EP": 60, "embedding": 50, "other": 1}
ELEMENT_SIZE = {"BFloat16": 2, "Float": 4}


@dataclass(frozen=True)
class Call:
    """What PyTorch records about a collective; element counts are those of the entire message."""

    dimension: str
    operation: str
    dtype: str
    elements_in: int
    elements_out: int

    @property
    def bytes(self) -> int:
        """Size of the larger side."""
        return max(self.elements_in, self.elements_out) * ELEMENT_SIZE[self.dtype]


@dataclass
class DeviceEvent:
    """One kernel or copy; times in nanoseconds from the start of the trace.

    Attributes:
        category: "kernel", "gpu_memcpy" or "gpu_memset".
        kind: COMPUTE, COMMUNICATION or MEMORY.
        backward: launched by the autograd thread.
        size: bytes of a copy.
        blocks: of the launch grid; equal work has equal grids.
    """

    start: int
    end: int
    stream: int
    name: str
    category: str
    kind: int
    dimension: str | None = None
    call: Call | None = None
    backward: bool = False
    size: int = 0
    blocks: int = 24


@dataclass
class RankTimeline:
    """One rank: when each stream is free, the events of the step so far, and its jitter."""

    random: random.Random
    free: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    events: list[DeviceEvent] = field(default_factory=list)
    communication: list[tuple[int, int]] = field(default_factory=list)
    waited: int = 0

    def communicates_until(self, when: int) -> int:
        """The end of the communication that runs at `when`; `when` where none runs."""
        # What ended before a kernel of today starts cannot run during a later one.
        self.communication = [span for span in self.communication if span[1] > when]
        return max((end for start, end in self.communication if start <= when), default=when)


# The host runs this far ahead of the device.
LEAD_NS = 400_000
# Host time per launch: operators, Python functions and the runtime call nest inside.
SLOT_NS = 4_000


def launch_slots(events: list[DeviceEvent], host_free: int) -> list[int]:
    """When the host prepares each launch of a step, one after the other, ahead of the device.

    Args:
        events: in the order of their launches.
        host_free: the end of the previous step's last slot.

    Raises:
        ValueError: an event would start before its launch has ended.
    """
    latest = []
    nearest = events[-1].start
    for event in reversed(events):
        nearest = min(nearest, event.start)
        latest.append(nearest - LEAD_NS)
    slots = []
    for event, when in zip(events, reversed(latest), strict=True):
        slots.append(max(host_free, when))
        host_free = slots[-1] + SLOT_NS
        if host_free > event.start:
            raise ValueError(f"the device would wait for the host at {event}")
    return slots


class Layout:
    """Builds one step after the other; `step()` returns each rank's events of the next one."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.backward = False
        self.ranks = [
            RankTimeline(random.Random(scenario.seed * 1009 + rank))
            for rank in range(scenario.ranks)
        ]
        for timeline in self.ranks:
            self._start_all(timeline, self._grid(1_000_000))

    def _grid(self, duration: float) -> int:
        grid = self.scenario.grid_ns
        return max(grid, round(duration / grid) * grid)

    def _start_all(self, timeline: RankTimeline, when: int) -> None:
        for stream in (COMPUTE_STREAM, COPY_STREAM, *STREAMS.values()):
            timeline.free[stream] = when

    def _jitter(self, timeline: RankTimeline, duration: float) -> int:
        return self._grid(duration * timeline.random.uniform(0.94, 1.06))

    def compute(self, role: str, duration: float) -> None:
        """A kernel on the compute stream; `duration` in nanoseconds before jitter and factors."""
        s = self.scenario
        blocks = max(1, round(duration / 1_000))
        duration *= s.gemm_factor if role in names.GEMMS else 1.0
        for timeline in self.ranks:
            start = timeline.free[COMPUTE_STREAM]
            if s.layernorm_waits and role == "layernorm":
                start = timeline.communicates_until(start)
            slowed = s.slowdown if timeline.communicates_until(start) > start else 1.0
            end = start + self._jitter(timeline, duration * slowed)
            timeline.events.append(
                DeviceEvent(
                    start,
                    end,
                    COMPUTE_STREAM,
                    names.KERNELS[role],
                    "kernel",
                    COMPUTE,
                    backward=self.backward,
                    blocks=blocks,
                )
            )
            # The launch of the next kernel leaves a gap of a microsecond or two.
            timeline.free[COMPUTE_STREAM] = end + self._jitter(timeline, 1_500)

    def stall(self, duration: int, rank: int | None = None) -> None:
        """Keep the compute stream idle, on every rank or on one."""
        for index, timeline in enumerate(self.ranks):
            if duration and rank in (None, index):
                timeline.free[COMPUTE_STREAM] += self._grid(duration)

    def copy(self, name: str, duration: float, size: int, stream: int = COMPUTE_STREAM) -> None:
        """A copy or memset that is not communication."""
        category = "gpu_memset" if name == names.MEMSET else "gpu_memcpy"
        for timeline in self.ranks:
            start = max(timeline.free[stream], timeline.free[COMPUTE_STREAM])
            end = start + self._jitter(timeline, duration)
            timeline.events.append(
                DeviceEvent(start, end, stream, name, category, MEMORY, size=size)
            )
            timeline.free[stream] = end

    def communicate(
        self,
        dimension: str,
        operation: str,
        duration: float,
        *,
        stream: str | None = None,
        name: str | None = None,
        dtype: str = "BFloat16",
        together: bool = True,
    ) -> list[int]:
        """A collective that depends on the compute so far; returns its end on each rank.

        `name` replaces NCCL's kernel by one without metadata. With `together` false each rank's
        ends by itself (its peers are not among the traced ranks).
        """
        s = self.scenario
        queue = STREAMS[stream or dimension]
        starts = [max(t.free[queue], t.free[COMPUTE_STREAM]) for t in self.ranks]
        moved = self._jitter(self.ranks[0], duration)
        call = None
        if name is None:
            elements = max(1, round(moved * BANDWIDTH[dimension] / ELEMENT_SIZE[dtype]))
            part = max(1, elements // len(s.group(dimension, 0)))
            call = Call(
                dimension,
                operation,
                dtype,
                part if operation == "all_gather" else elements,
                part if operation == "reduce_scatter" else elements,
            )
        peer_copy = name == names.PEER_TO_PEER
        ends = []
        for timeline, start in zip(self.ranks, starts, strict=True):
            end = (max(starts) if together else start) + moved
            timeline.waited += end - start - moved
            timeline.events.append(
                DeviceEvent(
                    start,
                    end,
                    queue,
                    name or names.nccl_kernel(operation, dtype, s.generation),
                    "gpu_memcpy" if peer_copy else "kernel",
                    COMMUNICATION,
                    dimension,
                    call,
                    self.backward,
                    size=moved * BANDWIDTH[dimension] if peer_copy else 0,
                )
            )
            if s.single_queue and start > timeline.free[COMPUTE_STREAM]:
                timeline.free[COMPUTE_STREAM] = start
            timeline.free[queue] = end
            timeline.communication.append((start, end))
            ends.append(end)
        return ends

    def wait(self, ends: list[int]) -> None:
        """Continue compute only when these have ended."""
        for timeline, end in zip(self.ranks, ends, strict=True):
            timeline.free[COMPUTE_STREAM] = max(timeline.free[COMPUTE_STREAM], end)

    def next_start(self, rank: int) -> int:
        """When the device work of `rank`'s next step can start."""
        return self.ranks[rank].free[COMPUTE_STREAM]

    def finish(self) -> list[list[DeviceEvent]]:
        """End the step: the next one starts when all streams are done, plus the gap.

        Returns:
            Each rank's events in the order of their launches, which is not that of their starts.
        """
        steps = []
        for timeline in self.ranks:
            events = timeline.events
            last = max(event.end for event in events)
            gap = self.scenario.gap_ns
            self._start_all(timeline, last + (self._grid(gap) if gap else 0))
            timeline.events = []
            steps.append(events)
        return steps
