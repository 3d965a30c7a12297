"""What a window of a profile really contains, determined by marking every elementary cell of time.

It is independent of the interval algebra under test: there are no unions and no subtraction of
intervals. All timestamps cut the window into cells. Each cell is completely covered or completely
free for every kind of work, and the widths of cells are added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.trace_scenario import DIMENSIONS

COMPUTE, COMMUNICATION, MEMORY = 0, 1, 2


@dataclass(frozen=True)
class Truth:
    """A window's time in nanoseconds. step = compute + exposed_comm + exposed_memory + idle.

    Attributes:
        exposed_memory_ns: memory work while neither compute nor communication ran.
        comm_by_dimension, exposed_by_dimension: one entry per dimension that communicates.
        collectives: how often each (dimension, collective name) started in the window.
        bytes: elements of the larger side times their size, summed in the same way.
    """

    start_ns: int
    end_ns: int
    compute_ns: int
    comm_ns: int
    exposed_comm_ns: int
    hidden_comm_ns: int
    memory_ns: int
    exposed_memory_ns: int
    idle_ns: int
    comm_by_dimension: dict[str, int]
    exposed_by_dimension: dict[str, int]
    collectives: dict[tuple[str, str], int]
    bytes: dict[tuple[str, str], int]

    @property
    def step_ns(self) -> int:
        """Length of the window."""
        return self.end_ns - self.start_ns

    @property
    def overlap_pct(self) -> float:
        """Hidden communication in percent of all communication; 0 without communication."""
        return 100.0 * self.hidden_comm_ns / self.comm_ns if self.comm_ns else 0.0


class DeviceWork:
    """The device events of one rank, as columns that grow; kept small for gigabyte traces."""

    def __init__(self) -> None:
        self.start: list[int] = []
        self.end: list[int] = []
        self.kind: list[int] = []
        self.dimension: list[int] = []
        self.calls: list[tuple[int, tuple[str, str], int]] = []

    def add(
        self,
        start: int,
        end: int,
        kind: int,
        dimension: str | None,
        call: str | None = None,
        size: int = 0,
    ) -> None:
        """One event, in nanoseconds; `call` is the collective's name, `size` its bytes."""
        self.start.append(start)
        self.end.append(end)
        self.kind.append(kind)
        self.dimension.append(DIMENSIONS.index(dimension) if dimension else -1)
        if dimension and call:
            self.calls.append((start, (dimension, call), size))

    def mark(self) -> tuple[int, int]:
        """The position of the next event; `truth` ignores the events before it."""
        return len(self.start), len(self.calls)

    def truth(self, lo: int, hi: int, since: tuple[int, int] = (0, 0)) -> Truth:
        """The truth of the window [lo, hi), from the events added after the mark `since`."""
        first, first_call = since
        start = np.clip(np.asarray(self.start[first:], dtype=np.int64), lo, hi)
        end = np.clip(np.asarray(self.end[first:], dtype=np.int64), lo, hi)
        kind = np.asarray(self.kind[first:], dtype=np.int8)
        dimension = np.asarray(self.dimension[first:], dtype=np.int8)
        cuts = np.unique(np.concatenate([start, end, np.array([lo, hi], dtype=np.int64)]))
        width = np.diff(cuts)

        def covered(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
            running = np.zeros(len(cuts), dtype=np.int64)
            np.add.at(running, np.searchsorted(cuts, start[chosen]), 1)
            np.add.at(running, np.searchsorted(cuts, end[chosen]), -1)
            return np.asarray(np.cumsum(running)[:-1] > 0)

        def total(cells: NDArray[np.bool_]) -> int:
            return int(width[cells].sum())

        compute = covered(kind == COMPUTE)
        comm = covered(kind == COMMUNICATION)
        memory = covered(kind == MEMORY)
        by_dimension = {
            name: covered(dimension == index)
            for index, name in enumerate(DIMENSIONS)
            if bool((dimension == index).any())
        }
        calls: Counter[tuple[str, str]] = Counter()
        sizes: Counter[tuple[str, str]] = Counter()
        for when, key, size in self.calls[first_call:]:
            if lo <= when < hi:
                calls[key] += 1
                sizes[key] += size
        return Truth(
            start_ns=lo,
            end_ns=hi,
            compute_ns=total(compute),
            comm_ns=total(comm),
            exposed_comm_ns=total(comm & ~compute),
            hidden_comm_ns=total(comm & compute),
            memory_ns=total(memory),
            exposed_memory_ns=total(memory & ~compute & ~comm),
            idle_ns=total(~(compute | comm | memory)),
            comm_by_dimension={name: total(cells) for name, cells in by_dimension.items()},
            exposed_by_dimension={
                name: total(cells & ~compute) for name, cells in by_dimension.items()
            },
            collectives=dict(calls),
            bytes=dict(sizes),
        )


@dataclass(frozen=True)
class RankTruth:
    """The file of one rank, and what it shows.

    Attributes:
        steps: by step number, over the device range of each ProfilerStep.
        whole: from the first device work to the end of the last.
        waited_ns: how long the collectives of this rank ran before the last rank joined, summed.
        device_events, events: number of events that are device work, and of all with a category.
    """

    rank: int
    path: str
    steps: dict[int, Truth]
    whole: Truth
    waited_ns: int
    device_events: int
    events: int


def parts(truths: Sequence[Truth]) -> dict[str, int]:
    """The exclusive parts of the step, summed over `truths`; they add up to the step."""
    return {
        "compute": sum(t.compute_ns for t in truths),
        "exposed_comm": sum(t.exposed_comm_ns for t in truths),
        "exposed_memory": sum(t.exposed_memory_ns for t in truths),
        "idle": sum(t.idle_ns for t in truths),
    }
