"""What is read from a file, in lists, without numpy.

Large files are read in separate processes while numpy is imported, which takes as long as reading a
small file.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from overlapkit.output.printable import printable
from overlapkit.trace.read.json.lost_events import LostEvents


@dataclass(frozen=True)
class Call:
    """What the profiler recorded about a collective; None where it did not.

    Attributes:
        name: PyTorch's "Collective name".
        elements_in, elements_out: number of elements in the input and output of this rank.
        dtype: PyTorch's name of the element type.
        group_size: number of ranks in the process group.
        group: name of the process group.
        description: its description, such as TENSOR_MODEL_PARALLEL_GROUP.
        ranks: its ranks; empty where they are unknown, or abbreviated in the file.
    """

    name: str | None = None
    elements_in: int | None = None
    elements_out: int | None = None
    dtype: str | None = None
    group_size: int | None = None
    group: str | None = None
    description: str | None = None
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """A process group that the file lists (`distributedInfo.pg_config`)."""

    name: str
    description: str
    size: int
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Window:
    """A step on the device: [start, end) in nanoseconds.

    Attributes:
        name: as in the profile, such as "ProfilerStep#12"; "whole trace" for the whole trace.
        number: the step's number; None for the whole trace.
    """

    name: str
    number: int | None
    start: int
    end: int


_NUMBER = re.compile(r"(\d+)\s*$")


@dataclass
class StepRanges:
    """Ranges that mark steps, by the number of the step; ranges of one number are one step.

    Ranges without a number are steps only where no range has a number.
    """

    ranges: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    unnumbered: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, name: str, start: int, end: int) -> None:
        """Add a range, in nanoseconds; an empty one is ignored."""
        if end <= start:
            return
        match = _NUMBER.search(name)
        if match is None or len(match.group(1)) > 15:
            self.unnumbered.append((printable(name), start, end))
            return
        number = int(match.group(1))
        known = self.ranges.get(number)
        if known is not None:
            start, end = min(start, known[1]), max(end, known[2])
        self.ranges[number] = (printable(name), start, end)

    def update(self, other: StepRanges) -> None:
        """Add the ranges of another share of the same file."""
        for name, start, end in (*other.ranges.values(), *other.unnumbered):
            self.add(name, start, end)

    def windows(self) -> list[Window]:
        """The steps, in the order of their starts."""
        ranges = self.ranges or dict(enumerate(sorted(self.unnumbered, key=lambda r: r[1:])))
        windows = [Window(name, number, a, b) for number, (name, a, b) in ranges.items()]
        return sorted(windows, key=lambda w: (w.start, w.end))


@dataclass
class WorkColumns:
    """Events of one device as they were read; `name` is twice its number, plus 1 for a copy."""

    ts: list[Any] = field(default_factory=list)
    dur: list[Any] = field(default_factory=list)
    name: list[int] = field(default_factory=list)
    stream: list[Any] = field(default_factory=list)
    correlation: list[Any] = field(default_factory=list)
    grid: list[int] = field(default_factory=list)
    call: list[int] = field(default_factory=list)
    nanoseconds: bool = False
    """Whether times are integer nanoseconds; otherwise they are Kineto's microseconds."""


@dataclass
class HostRanges:
    """Operators and annotations of a CPU trace, in nanoseconds."""

    names: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    threads: list[tuple[Any, Any]] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    step_threads: set[tuple[Any, Any]] = field(default_factory=set)

    def add(self, name: str, category: str, thread: tuple[Any, Any], span: tuple[int, int]) -> None:
        """Add a range; `span` is its start and end."""
        self.names.append(name)
        self.categories.append(category)
        self.threads.append(thread)
        self.start.append(span[0])
        self.end.append(span[1])


@dataclass
class MarkColumns:
    """Ranges on the host that say what launched a kernel, as they were read.

    Attributes:
        name: the number of each one's name.
        thread: the number of its thread.
        ts, dur: its time, as in `WorkColumns`.
        call: what it says of a collective, by number; -1 for nothing.
        nanoseconds: as in `WorkColumns`.
        frameworks: how many different names, also of other ranges, speak of each framework.
    """

    name: list[int] = field(default_factory=list)
    thread: list[int] = field(default_factory=list)
    ts: list[Any] = field(default_factory=list)
    dur: list[Any] = field(default_factory=list)
    call: list[int] = field(default_factory=list)
    nanoseconds: bool = False
    frameworks: Counter[str] = field(default_factory=Counter)


class Numbers(dict[Any, int]):
    """Numbers keys in the order in which they are first looked up."""

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


@dataclass
class Reading:
    """What accumulates while a file is read.

    Attributes:
        devices: the events of each device.
        names, grids, threads: what is numbered in the columns, with its number.
        calls: what was recorded about collectives, with its number.
        call_numbers: the numbers of calls by the unconverted arguments of an event.
        launch_correlation, launch_time, launch_thread: columns of the launches on the host.
        launch_processes: the processes that launched.
        device_processes: what events on devices state as their process.
        device_steps: ranges on each device that mark steps.
        host_steps: ranges on the host that mark steps.
        engine_ranges: name, start and end of an inference engine's ranges around its iterations.
        host: operators and annotations, where they matter.
        marks: ranges on the host that say what launched a kernel; their names are in `names`.
        problems: what was omitted or repaired, with counts.
        lost: device events that could not be read.
        metadata: the other keys at the top level of the file.
        cut: whether the file ends before its list of events does.
    """

    devices: dict[int, WorkColumns] = field(default_factory=dict)
    names: Numbers = field(default_factory=Numbers)
    grids: Numbers = field(default_factory=Numbers)
    calls: dict[Call, int] = field(default_factory=dict)
    call_numbers: dict[Any, int] = field(default_factory=dict)
    launch_correlation: list[Any] = field(default_factory=list)
    launch_time: list[Any] = field(default_factory=list)
    launch_thread: list[int] = field(default_factory=list)
    launch_processes: set[Any] = field(default_factory=set)
    device_processes: set[Any] = field(default_factory=set)
    threads: Numbers = field(default_factory=Numbers)
    device_steps: dict[int, StepRanges] = field(default_factory=lambda: defaultdict(StepRanges))
    host_steps: StepRanges = field(default_factory=StepRanges)
    engine_ranges: list[tuple[str, int, int]] = field(default_factory=list)
    host: HostRanges = field(default_factory=HostRanges)
    marks: MarkColumns = field(default_factory=MarkColumns)
    problems: Counter[str] = field(default_factory=Counter)
    lost: LostEvents = field(default_factory=LostEvents)
    metadata: dict[str, Any] = field(default_factory=dict)
    cut: bool = False

    def add(self, other: Reading) -> None:
        """Add what was read of another share of the same file."""
        names, calls = (
            _renumbered(a, b) for a, b in ((self.names, other.names), (self.calls, other.calls))
        )
        grids, threads = (
            _renumbered(a, b) for a, b in ((self.grids, other.grids), (self.threads, other.threads))
        )
        for device, theirs in other.devices.items():
            mine = self.devices.setdefault(device, WorkColumns())
            mine.ts += theirs.ts
            mine.dur += theirs.dur
            mine.name += [names[code >> 1] * 2 + (code & 1) for code in theirs.name]
            mine.stream += theirs.stream
            mine.correlation += theirs.correlation
            mine.grid += [grids[number] for number in theirs.grid]
            mine.call += [-1 if number < 0 else calls[number] for number in theirs.call]
        self.launch_correlation += other.launch_correlation
        self.launch_time += other.launch_time
        self.launch_processes |= other.launch_processes
        self.device_processes |= other.device_processes
        self.launch_thread += [threads[number] for number in other.launch_thread]
        for device, ranges in other.device_steps.items():
            self.device_steps[device].update(ranges)
        self.host_steps.update(other.host_steps)
        self.engine_ranges += other.engine_ranges
        self.marks.name += [names[number] for number in other.marks.name]
        self.marks.thread += [threads[number] for number in other.marks.thread]
        self.marks.ts += other.marks.ts
        self.marks.dur += other.marks.dur
        self.marks.call += [-1 if number < 0 else calls[number] for number in other.marks.call]
        self.marks.frameworks.update(other.marks.frameworks)
        self.problems.update(other.problems)
        self.lost.update(other.lost)


def _renumbered(mine: dict[Any, int], theirs: dict[Any, int]) -> list[int]:
    """For each of their numbers, in order, the number of the same key among mine."""
    return [mine.setdefault(key, len(mine)) for key in theirs]
