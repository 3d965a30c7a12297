"""The device work of one device of one rank, as columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron.bridge.training.decisions import PARALLEL_DIMENSIONS
from overlapkit.trace.intervals import NOTHING, Ints, Spans
from overlapkit.trace.read.recorded import Call, Group, Window

Source = Literal["kineto", "nsys", "cpu"]
"""Where device work was read: torch.profiler; Nsight Systems; torch.profiler without a device."""

COMPUTE, COMMUNICATION, MEMORY = 0, 1, 2
"""Kinds of device work."""

DIMENSIONS = (*PARALLEL_DIMENSIONS, "embedding", "other")
"""What a communication can belong to, in the order of reports."""


@dataclass(frozen=True)
class Launches:
    """When and where the host launched work, sorted by correlation id.

    Attributes:
        correlation: the ids.
        time: of the launch, in nanoseconds.
        thread: the number of the launching thread.
    """

    correlation: Ints
    time: Ints
    thread: NDArray[np.int32]

    def find(self, correlation: Ints) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """For each id the index of its launch, and whether there is one."""
        if not len(self.correlation):
            return np.zeros(len(correlation), np.intp), np.zeros(len(correlation), np.bool_)
        place = np.searchsorted(self.correlation, correlation)
        place = np.minimum(place, len(self.correlation) - 1)
        return place, np.asarray(self.correlation[place] == correlation)


def sorted_launches(correlation: Ints, time: Ints, thread: NDArray[np.int32]) -> Launches:
    """Launches in the order of their ids."""
    order = np.argsort(correlation, kind="stable")
    return Launches(correlation[order], time[order], thread[order])


# Compared by identity: equality of columns is not a truth value.
@dataclass(eq=False)
class Work:
    """The work of one device. The columns have one entry per event, sorted by start.

    Attributes:
        path: the file, as the user named it.
        source: what recorded it; "cpu" where operators and gloo's ranges replace device work.
        device: the device's number; -1 for a CPU.
        start, end: nanoseconds.
        name: index into `names`.
        kind: COMPUTE, COMMUNICATION or MEMORY.
        stream: the number of the stream; -1 where it is unknown.
        correlation: connects an event to its launch; -1 where it is unknown.
        grid: the number of the launch grid; -1 where it is unknown.
        call: index into `calls`; -1 where nothing was recorded.
        origin: index into `origins`: the ranges on the host that launched a communication; -1 where
            none is known.
        names: the names of the events.
        calls: what was recorded about collectives.
        steps: the steps on the device, in order; empty where the profile marks none.
        launches: the launches on the host; None where the profile has none.
        rank: the rank of this process; None where it is not recorded.
        world_size: the number of ranks of the job; None where it is not recorded.
        gpu: the name of the device; None where it is not recorded.
        groups: the process groups that the file lists.
        origins: names of ranges that were open at a launch, the outermost first.
        frameworks: how many different names in the file speak of each framework.
        data_waits: when the host waits for the next batch.
        host_steps: the ranges on the host that mark steps.
        iterations: those of an inference engine on the device, in order; empty where its ranges
            mark none.
        warnings: what was omitted or assumed.
        process: equal for the devices that one process of the file uses; None where that is not
            known.
        truncated: whether the file ends in the middle of its events.
    """

    path: str
    source: Source
    device: int
    start: Ints
    end: Ints
    name: NDArray[np.int32]
    kind: NDArray[np.int8]
    stream: Ints
    correlation: Ints
    grid: NDArray[np.int32]
    call: NDArray[np.int32]
    names: list[str]
    calls: list[Call]
    origin: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    steps: list[Window] = field(default_factory=list)
    launches: Launches | None = None
    rank: int | None = None
    world_size: int | None = None
    gpu: str | None = None
    groups: list[Group] = field(default_factory=list)
    origins: list[tuple[str, ...]] = field(default_factory=list)
    frameworks: Counter[str] = field(default_factory=Counter)
    data_waits: Spans = NOTHING
    host_steps: list[Window] = field(default_factory=list)
    iterations: list[Window] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    process: int | None = None
    truncated: bool = False

    def __post_init__(self) -> None:
        if len(self.origin) != len(self.start):
            self.origin = np.full(len(self.start), -1, np.int32)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def whole(self) -> Window:
        """From the start of the first device work to the end of the last."""
        return Window("whole trace", None, int(self.start.min()), int(self.end.max()))
