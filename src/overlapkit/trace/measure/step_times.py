"""What the time of a step consists of: measures of unions of intervals, in nanoseconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Ints, Spans, both, either, minus, shares, union
from overlapkit.trace.measure.dimensions import (
    CONFIDENCE,
    Confidence,
    Known,
    dimension_of,
    operation_of,
)
from overlapkit.trace.measure.evidence import Evidence
from overlapkit.trace.measure.group_evidence import Groups, groups_of, launches
from overlapkit.trace.measure.waiting import Waiting, of_next, waiting
from overlapkit.trace.read.device_work import (
    COMMUNICATION,
    COMPUTE,
    DIMENSIONS,
    MEMORY,
    Work,
)
from overlapkit.trace.read.kernel_names import short
from overlapkit.trace.read.recorded import Call, Window

Part = Literal["compute", "exposed_comm", "exposed_memory", "idle"]
"""An exclusive part of a step. The parts add up to the step."""

PARTS: tuple[Part, ...] = get_args(Part)
"""The parts in the order of precedence: what computes is not exposed, whatever else it does."""


WAITING_FOR_DATA = "waiting for data"
"""What owns idle time while the host waits for the next batch."""


@dataclass(frozen=True)
class DimensionTime:
    """The communication of a dimension in a window, in nanoseconds."""

    comm: int
    exposed: int

    @property
    def hidden(self) -> int:
        """At once with compute."""
        return self.comm - self.exposed


@dataclass(frozen=True)
class Times:
    """A window's time in nanoseconds.

    Attributes:
        window: the step, or the whole trace.
        compute: kernels that are neither communication nor copies.
        comm: communication on all streams.
        exposed_comm: communication without compute.
        memory: copies and memsets.
        exposed_memory: copies and memsets with neither compute nor communication.
        idle: no device work at all.
        waiting_for_data: the part of idle while the host waits for the next batch.
        waiting_for_host: the part of idle until the host launches the next work.
        by_dimension: the dimensions that communicate in these windows. Two can be exposed at once.
        data_of_next, host_of_next: the parts of waiting in the next step's range on the host.
    """

    window: Window
    compute: int
    comm: int
    exposed_comm: int
    memory: int
    exposed_memory: int
    idle: int
    waiting_for_data: int
    waiting_for_host: int
    by_dimension: dict[str, DimensionTime]
    data_of_next: int = 0
    host_of_next: int = 0

    @property
    def step(self) -> int:
        """Length of the window; compute + exposed_comm + exposed_memory + idle."""
        return self.window.end - self.window.start

    @property
    def hidden_comm(self) -> int:
        """Communication at once with compute."""
        return self.comm - self.exposed_comm

    @property
    def overlap_pct(self) -> float | None:
        """Hidden communication in percent of all communication; None without communication."""
        return 100.0 * self.hidden_comm / self.comm if self.comm else None

    @property
    def parts(self) -> dict[Part, int]:
        """The exclusive parts."""
        return {
            "compute": self.compute,
            "exposed_comm": self.exposed_comm,
            "exposed_memory": self.exposed_memory,
            "idle": self.idle,
        }


@dataclass(frozen=True)
class Traffic:
    """A kind of communication: same kernel, operation, group and dimension.

    Attributes:
        name: the shortened name of the kernel.
        operation: such as "all_gather" or "send".
        dimension: one of `DIMENSIONS`.
        confidence: how certain the dimension is.
        group: description or name of the process group; None where it is unknown.
    """

    name: str
    operation: str
    dimension: str
    confidence: Confidence
    group: str | None


@dataclass
class WorkSpans:
    """The work of a device, and the sets of time that it covers.

    Attributes:
        work: the events.
        traffic: the kinds of communication.
        traffic_of: for each event the index of its kind; -1 for events that are not communication.
        compute, comm, memory: the time covered by each kind of work.
        exposed, hidden: communication without and with compute.
        exposed_memory: memory operations with neither compute nor communication.
        busy: any device work.
        waiting: idle time by what the device waits for.
        dimension_comm, dimension_exposed: the communication of each dimension, all and exposed.
    """

    work: Work
    traffic: list[Traffic]
    traffic_of: NDArray[np.int32]
    compute: Spans
    comm: Spans
    memory: Spans
    exposed: Spans
    hidden: Spans
    exposed_memory: Spans
    busy: Spans
    waiting: Waiting
    dimension_comm: dict[str, Spans] = field(default_factory=dict)
    dimension_exposed: dict[str, Spans] = field(default_factory=dict)

    def events_of(self, kinds: Sequence[int]) -> NDArray[np.intp]:
        """The events of these kinds of communication, by their indices in `traffic`."""
        # One more, for the -1 of events that are not communication.
        wanted = np.zeros(len(self.traffic) + 1, dtype=np.bool_)
        wanted[list(kinds)] = True
        return np.flatnonzero(wanted[self.traffic_of])

    def times(self, windows: Sequence[Window]) -> list[Times]:
        """What the time of each window consists of."""
        start = np.asarray([w.start for w in windows], dtype=np.int64)
        end = np.asarray([w.end for w in windows], dtype=np.int64)
        columns = {
            name: getattr(self, name).within(start, end)
            for name in ("compute", "comm", "exposed", "memory", "exposed_memory", "busy")
        }
        data = self.waiting.data.within(start, end)
        host = self.waiting.host.within(start, end)
        data_of_next = of_next(self.work, self.waiting.data, windows)
        host_of_next = of_next(self.work, self.waiting.host, windows)
        comm = {d: s.within(start, end) for d, s in self.dimension_comm.items()}
        # What communicates only outside, as initialization does, is no part of the windows.
        comm = {d: ns for d, ns in comm.items() if ns.any()}
        exposed = {d: s.within(start, end) for d, s in self.dimension_exposed.items()}
        return [
            Times(
                window=window,
                compute=int(columns["compute"][i]),
                comm=int(columns["comm"][i]),
                exposed_comm=int(columns["exposed"][i]),
                memory=int(columns["memory"][i]),
                exposed_memory=int(columns["exposed_memory"][i]),
                idle=window.end - window.start - int(columns["busy"][i]),
                waiting_for_data=int(data[i]),
                waiting_for_host=int(host[i]),
                by_dimension={d: DimensionTime(int(comm[d][i]), int(exposed[d][i])) for d in comm},
                data_of_next=data_of_next[i],
                host_of_next=host_of_next[i],
            )
            for i, window in enumerate(windows)
        ]


def measure(work: Work, known: Known) -> WorkSpans:
    """Classify the communication of a device, and form the sets of time to measure."""
    is_comm = work.kind == COMMUNICATION
    known = _with_work(known, work, work.name[is_comm])
    traffic, traffic_of = _traffic(work, np.flatnonzero(is_comm), known)
    compute = _of(work, work.kind == COMPUTE)
    comm = _of(work, is_comm)
    memory = _of(work, work.kind == MEMORY)
    busy = either(compute, comm, memory)
    result = WorkSpans(
        work=work,
        traffic=traffic,
        traffic_of=traffic_of,
        compute=compute,
        comm=comm,
        memory=memory,
        exposed=minus(comm, compute),
        hidden=both(comm, compute),
        exposed_memory=minus(memory, either(compute, comm)),
        busy=busy,
        waiting=waiting(work, busy),
    )
    for dimension in DIMENSIONS:
        kinds = [i for i, t in enumerate(traffic) if t.dimension == dimension]
        if kinds:
            chosen = result.events_of(kinds)
            spans = union(work.start[chosen], work.end[chosen])
            result.dimension_comm[dimension] = spans
            result.dimension_exposed[dimension] = minus(spans, compute)
    return result


def _of(work: Work, which: NDArray[np.bool_]) -> Spans:
    return union(work.start[which], work.end[which])


def _traffic(
    work: Work, events: NDArray[np.intp], known: Known
) -> tuple[list[Traffic], NDArray[np.int32]]:
    """The kinds of communication, and the kind of each event."""
    traffic_of = np.full(len(work), -1, dtype=np.int32)
    kinds: dict[Traffic, int] = {}
    if len(events):
        found, inverse = launches(work, events)
        known = replace(known, groups_told=_told(known.groups_told, groups_of(found)))
        numbers = []
        # Calls differ in their message sizes, which do not matter here.
        classified: dict[tuple[Any, ...], int] = {}
        for name, call, launch in found:
            facts = call and (call.name, call.group_size, call.group, call.description, call.ranks)
            number = classified.get((name, facts, launch))
            if number is None:
                traffic = _traffic_of(work.names[name], call, known, launch)
                number = kinds.setdefault(traffic, len(kinds))
                classified[name, facts, launch] = number
            numbers.append(number)
        traffic_of[events] = np.asarray(numbers, dtype=np.int32)[inverse]
    return list(kinds), traffic_of


def _told(in_file: Groups, here: Groups) -> Groups:
    """What launches say of groups: of communicators, those of all processes."""
    mixed = in_file.mixed | here.mixed
    said = here.dimension | in_file.dimension
    return Groups({g: d for g, d in said.items() if g not in mixed}, mixed)


def _traffic_of(name: str, call: Call | None, known: Known, launch: Evidence) -> Traffic:
    event = known.stated.classify(name)
    dimension, confidence = dimension_of(event, call, known, launch)
    group = None
    if call is not None:
        group = known.description(call) or call.group
    return Traffic(
        name=short(name),
        operation=operation_of(event, call, launch),
        dimension=dimension,
        confidence=confidence,
        group=group,
    )


def _with_work(known: Known, work: Work, names: NDArray[np.int32]) -> Known:
    """What is known, with what the names of kernels and ranges say of the whole file."""
    used = [work.names[n] for n in np.flatnonzero(np.bincount(names)).tolist()]
    return replace(
        known,
        world_size=work.world_size,
        frameworks=frozenset(work.frameworks),
        libraries=frozenset(known.stated.classify(name).library for name in used),
    )


def followed_steps(followed: Sequence[bool], steps: int) -> list[int]:
    """The steps that run to the start of another one; all where they are fewer than half.

    The rest lack the time to the next step's start, in which the device often waits for data.

    Args:
        followed: for each step whether it does; empty where all do.
        steps: their number.
    """
    chosen = [index for index, known in enumerate(followed) if known]
    return chosen if 2 * len(chosen) >= steps else list(range(steps))


def span_of(windows: Sequence[Window]) -> Spans:
    """The time that any of the windows covers."""
    return union(
        np.asarray([w.start for w in windows], dtype=np.int64),
        np.asarray([w.end for w in windows], dtype=np.int64),
    )


def confidence_by_dimension(traffic: Sequence[Traffic]) -> dict[str, Confidence]:
    """The lowest confidence among the communication of each dimension."""
    result: dict[str, Confidence] = {}
    for kind in traffic:
        known: Confidence = result.get(kind.dimension, "certain")
        result[kind.dimension] = max(known, kind.confidence, key=CONFIDENCE.index)
    return {d: result[d] for d in DIMENSIONS if d in result}


def contributions(m: WorkSpans, windows: Sequence[Window]) -> dict[Part, dict[str, Ints]]:
    """What each exclusive part consists of: part to label to nanoseconds per window.

    Each moment has one owner (of kernels that run at the same time, the one that began first), so
    the labels of a part add up to it. Idle time is owned by the work that ends it, or by the wait
    for data.
    """
    work = m.work
    label = np.asarray([short(name) for name in work.names], dtype=object)[work.name]
    for index, kind in enumerate(m.traffic):
        label[m.traffic_of == index] = f"{kind.dimension} {kind.operation} ({kind.name})"
    before: dict[Part, tuple[int, Spans | None]] = {
        "compute": (COMPUTE, None),
        "exposed_comm": (COMMUNICATION, m.compute),
        "exposed_memory": (MEMORY, either(m.compute, m.comm)),
    }
    result: dict[Part, dict[str, Ints]] = {}
    for part, (work_kind, above) in before.items():
        chosen = np.flatnonzero(work.kind == work_kind)
        start, end, owner = shares(work.start[chosen], work.end[chosen])
        result[part] = _Pieces(start, end, label[chosen][owner]).by_label(windows, above)
    result["idle"] = _idle_by_label(m, label, windows)
    return result


def _idle_by_label(
    m: WorkSpans, label: NDArray[np.object_], windows: Sequence[Window]
) -> dict[str, Ints]:
    """Idle time by the work that ends it, apart from what waits for data."""
    work, data = m.work, m.waiting.data
    gap_start, gap_end = m.busy.end[:-1], m.busy.start[1:]
    follower = np.searchsorted(work.start, gap_end, side="left")
    owner = np.minimum(follower, len(work) - 1)
    names = np.asarray([f"before {name}" for name in label[owner]], dtype=object)
    rows = _Pieces(gap_start, gap_end, names).by_label(windows, data)
    start = np.asarray([w.start for w in windows], dtype=np.int64)
    end = np.asarray([w.end for w in windows], dtype=np.int64)
    # A step can begin before its first work, or end after its last.
    around = [(start, np.minimum(end, work.whole.start)), (np.maximum(start, work.whole.end), end)]
    outside = sum(np.where(b > a, b - a - data.within(a, b), 0) for a, b in around)
    for name, row in ((WAITING_FOR_DATA, data.within(start, end)), ("outside all work", outside)):
        if np.any(row):
            rows[name] = np.asarray(row, dtype=np.int64)
    return rows


@dataclass(frozen=True)
class _Pieces:
    """Disjoint pieces of time, sorted, and the label of the owner of each."""

    start: Ints
    end: Ints
    labels: NDArray[np.object_]

    def by_label(self, windows: Sequence[Window], above: Spans | None) -> dict[str, Ints]:
        """The nanoseconds of each label per window, except those that `above` covers."""
        rows: dict[str, Ints] = defaultdict(lambda: np.zeros(len(windows), dtype=np.int64))
        for index, window in enumerate(windows):
            first = int(np.searchsorted(self.end, window.start, side="right"))
            last = int(np.searchsorted(self.start, window.end, side="left"))
            a = np.maximum(self.start[first:last], window.start)
            b = np.minimum(self.end[first:last], window.end)
            own = b - a if above is None else (b - a) - above.within(a, b)
            for name, value in zip(self.labels[first:last].tolist(), own.tolist(), strict=True):
                if value > 0:
                    rows[name][index] += value
        return dict(rows)
