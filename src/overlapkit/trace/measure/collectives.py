"""The most expensive collectives, and the compute that runs slower beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Ints, Spans, both, distinct, minus, union
from overlapkit.trace.measure.group_names import described, undescribed
from overlapkit.trace.measure.step_times import Traffic, WorkSpans
from overlapkit.trace.read.device_work import COMPUTE, Work
from overlapkit.trace.read.kernel_names import short
from overlapkit.trace.read.recorded import Call

_POINT_TO_POINT = frozenset({"send", "recv", "isend", "irecv", "send_recv", "peer copy"})

_SIZES = {
    "float": 4, "float32": 4, "int": 4, "int32": 4, "uint32": 4,
    "double": 8, "float64": 8, "long": 8, "int64": 8, "uint64": 8, "complexfloat": 8,
    "half": 2, "float16": 2, "bfloat16": 2, "short": 2, "int16": 2, "uint16": 2,
    "byte": 1, "uint8": 1, "char": 1, "int8": 1, "bool": 1, "complexdouble": 16,
}  # fmt: skip
"""Bytes per element of PyTorch's types."""


@dataclass(frozen=True)
class Collective:
    """One kind of communication in the measured steps.

    Attributes:
        traffic: the kind.
        count: how many started.
        bytes: the larger side of each message, summed; None where a size is unknown.
        busy_ns: time during which any of them ran.
        exposed_ns: the part of that time without compute.
        bus_gb_s: bus bandwidth as nccl-tests define it, in 10**9 bytes/s, including the time spent
            waiting for late ranks; None where a size is unknown.
    """

    traffic: Traffic
    count: int
    bytes: int | None
    busy_ns: int
    exposed_ns: int
    bus_gb_s: float | None


@dataclass(frozen=True)
class Slowed:
    """A kernel that runs both alone and beside communication. Times are in nanoseconds."""

    name: str
    count: int
    median_during: float
    median_alone: float
    lost_ns: float

    @property
    def ratio(self) -> float:
        """Duration beside communication divided by the duration alone."""
        return self.median_during / self.median_alone


@dataclass(frozen=True)
class SlowedCompute:
    """Compute beside communication, compared with the same kernels alone.

    Attributes:
        during_ns: durations of the kernels that ran beside communication, summed.
        expected_ns: what they would take alone, by the median of the same kernel.
        kernels: the kernels that lose most.
    """

    during_ns: int
    expected_ns: float
    kernels: list[Slowed]

    @property
    def ratio(self) -> float | None:
        """The overall ratio; None where no kernel runs both ways."""
        return self.during_ns / self.expected_ns if self.expected_ns else None

    @property
    def lost_ns(self) -> float:
        """Time lost to sharing the device."""
        return self.during_ns - self.expected_ns


def message_bytes(call: Call) -> int | None:
    """Bytes of the larger side of a collective; None where elements or type are unknown."""
    kind = (call.dtype or "").lower().rpartition(".")[2].rpartition("::")[2]
    size = 1 if kind.startswith("float8") else _SIZES.get(kind)
    elements = [n for n in (call.elements_in, call.elements_out) if n is not None and n >= 0]
    return None if size is None or not elements else max(elements) * size


def bus_factor(what: str, ranks: int | None) -> float | None:
    """Bytes on the busiest link per byte of the message (nccl-tests, doc/PERFORMANCE.md).

    None where the number of ranks matters and is unknown.
    """
    if what == "all_reduce":
        return 2 * (ranks - 1) / ranks if ranks else None
    if what in ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter"):
        return (ranks - 1) / ranks if ranks else None
    return 1.0


def collectives(m: WorkSpans, scope: Spans) -> list[Collective]:
    """Every kind of communication that runs in `scope`, the most exposed first."""
    work = m.work
    result = []
    known = [message_bytes(call) for call in work.calls]
    sizes = [*known, None]
    for index, traffic in enumerate(m.traffic):
        chosen = np.flatnonzero(m.traffic_of == index)
        busy = both(union(work.start[chosen], work.end[chosen]), scope)
        started = chosen[_inside(scope, work.start[chosen])]
        if not len(busy) and not len(started):
            continue
        total, moved, duration = 0, 0.0, 0
        complete = bool(len(started))
        for call, count, ran in _per_call(work.call[started], (work.end - work.start)[started]):
            size = sizes[call]
            if size is None:
                complete = False
                break
            total += size * count
            factor = bus_factor(traffic.operation, work.calls[call].group_size)
            if factor is not None:
                moved += size * count * factor
                duration += ran
        result.append(
            Collective(
                traffic=traffic,
                count=len(started),
                bytes=total if complete else None,
                busy_ns=busy.total,
                exposed_ns=minus(busy, m.compute).total,
                bus_gb_s=moved / duration if complete and duration and moved else None,
            )
        )
    return sorted(result, key=lambda c: (-c.exposed_ns, -c.busy_ns, c.traffic.name))


def _per_call(calls: NDArray[np.int32], durations: Ints) -> list[tuple[int, int, int]]:
    unique, inverse = distinct(calls.astype(np.int64))
    counts = np.bincount(inverse, minlength=len(unique))
    ran = np.bincount(inverse, weights=durations, minlength=len(unique))
    return [(int(c), int(n), int(t)) for c, n, t in zip(unique, counts, ran.tolist(), strict=True)]


def _inside(scope: Spans, when: Ints) -> NDArray[np.bool_]:
    one = np.ones(len(when), dtype=np.int64)
    return np.asarray(scope.within(when, when + one) > 0)


def slowed_compute(m: WorkSpans, scope: Spans, limit: int = 10) -> SlowedCompute:
    """Kernels beside communication, compared with the same kernels alone.

    Kernels are the same if their name, launch grid, launching thread and neighbours are. A kernel
    is beside communication if that covers at least half of it, and alone if none overlaps it.
    Kernels in between are ignored, and so are those that did not run at least twice both ways.
    """
    work = m.work
    chosen = np.flatnonzero(work.kind == COMPUTE)
    chosen = chosen[_inside(scope, work.start[chosen])]
    length = (work.end - work.start)[chosen]
    chosen, length = chosen[length > 0], length[length > 0]
    if not len(chosen):
        return SlowedCompute(0, 0.0, [])
    beside = m.comm.within(work.start[chosen], work.end[chosen])
    alone, during = beside == 0, 2 * beside >= length
    found: dict[str, list[Slowed]] = {}
    total_during, total_expected = 0, 0.0
    for group in _same_work(m, chosen):
        own, shared = np.sort(length[group[alone[group]]]), length[group[during[group]]]
        if len(own) < 2 or len(shared) < 2:
            continue
        expected = median(own)
        if float(own[3 * len(own) // 4]) - float(own[len(own) // 4]) > 0.5 * expected:
            # The name stands for work of several sizes, so there is no reference.
            continue
        total = int(shared.sum())
        total_during += total
        total_expected += expected * len(shared)
        name = short(work.names[int(work.name[chosen[group[0]]])])
        lost = total - expected * len(shared)
        found.setdefault(name, []).append(
            Slowed(name, len(shared), median(np.sort(shared)), expected, lost)
        )
    kernels = [_together(kinds) for kinds in found.values()]
    kernels = sorted((k for k in kernels if k.lost_ns > 0), key=lambda k: -k.lost_ns)[:limit]
    return SlowedCompute(total_during, total_expected, kernels)


def _same_work(m: WorkSpans, chosen: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Places in `chosen`, grouped by what tells kernels of the same work.

    That is the name and launch grid of the kernel, the thread that launches it, and the names of
    the kernels before and after it on its stream.
    """
    work = m.work
    name = work.name[chosen].astype(np.int64)
    keys = _numbered(name, work.grid[chosen].astype(np.int64))
    if work.launches is not None and len(work.launches.correlation):
        # Forward and backward launch kernels of one name and grid for different sizes, but from
        # different threads.
        place, known = work.launches.find(work.correlation[chosen])
        thread = np.where(known, work.launches.thread[place].astype(np.int64), -1)
        keys = _numbered(keys, thread)
    # A compiled step has one thread, and persistent kernels have one grid for all sizes.
    along = np.argsort(work.stream[chosen], kind="stable")
    stream = work.stream[chosen][along]
    same = np.append(stream[1:] == stream[:-1], False)
    after, before = np.full(len(chosen), -1), np.full(len(chosen), -1)
    after[along[:-1][same[:-1]]] = name[along[1:][same[:-1]]]
    before[along[1:][same[:-1]]] = name[along[:-1][same[:-1]]]
    keys = _numbered(_numbered(keys, before), after)
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.diff(keys[order], prepend=-1))
    for first, last in zip(bounds, [*bounds[1:], len(order)], strict=True):
        yield order[first:last]


def _numbered(one: Ints, other: Ints) -> Ints:
    """A number for each pair of numbers, of which the others are -1 or more."""
    width = int(other.max(initial=-1)) + 2
    return np.asarray(distinct(one * width + other + 1)[1], np.int64)


def _together(kinds: Sequence[Slowed]) -> Slowed:
    """One kernel with several launch grids: the medians are those of the grid that loses most."""
    return replace(
        max(kinds, key=lambda k: k.lost_ns),
        count=sum(k.count for k in kinds),
        lost_ns=sum(k.lost_ns for k in kinds),
    )


def median(ordered: Ints) -> float:
    """The median of sorted values. For few values numpy.median takes a hundred times as long."""
    half = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[half])
    return (float(ordered[half - 1]) + float(ordered[half])) / 2


def _group_of(work: Work, call: Call | None, traffic: Traffic) -> str:
    """What all ranks of a communication's group call it; "" where that is not known."""
    listed = [g for g in work.groups if call is not None and g.name == call.group]
    if call is None:
        # Libraries beside NCCL record no group. The only one of their dimension is theirs.
        listed = [g for g in work.groups if described(g.description) == traffic.dimension]
        listed = [g for g in listed if work.rank is None or work.rank in g.ranks]
    ranks = {g.ranks for g in listed if g.ranks}
    if call is not None and call.ranks:
        ranks = {call.ranks}
    if len(ranks) == 1:
        return "ranks " + ",".join(map(str, sorted(ranks.pop())))
    if call is None or undescribed(traffic.group) or described(traffic.group) is None:
        return ""
    return traffic.group or ""


def calls_by_group(m: WorkSpans, scope: Spans) -> dict[str, tuple[list[int], list[int]]]:
    """Durations and exposed times of the collectives of each group, in the order of their starts.

    The keys are the same on all ranks of a group, whatever each of them calls it: the operation, a
    bar, and the group: its ranks, or else its description, or else its place among the groups that
    have neither. Point-to-point communication is excluded: its two sides do not wait for each
    other in the same way.
    """
    work = m.work
    kinds: dict[str, list[int]] = {}
    nameless: dict[tuple[str, str], int] = {}
    # In the order of their first use, which is the same on all ranks.
    events = np.flatnonzero(m.traffic_of >= 0)
    of_event, calls = m.traffic_of[events], work.call[events].astype(np.int64)
    for index in dict.fromkeys(of_event.tolist()):
        traffic = m.traffic[index]
        if traffic.operation in _POINT_TO_POINT:
            continue
        used = distinct(calls[of_event == index])[0].tolist()
        groups = {_group_of(work, work.calls[c] if c >= 0 else None, traffic) for c in used}
        group = groups.pop() if len(groups) == 1 else ""
        if not group and traffic.group is not None:
            kind = (traffic.operation, traffic.group)
            place = [k for k in nameless if k[0] == traffic.operation]
            group = f"group {nameless.setdefault(kind, len(place) + 1)}"
        kinds.setdefault(f"{traffic.operation}|{group}", []).append(index)
    result = {}
    for key, indices in kinds.items():
        chosen = m.events_of(indices)
        chosen = chosen[_inside(scope, work.start[chosen])]
        start, end = work.start[chosen], work.end[chosen]
        exposed = (end - start) - m.compute.within(start, end)
        result[key] = ((end - start).tolist(), exposed.tolist())
    return result
