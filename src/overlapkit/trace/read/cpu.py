"""A trace without device work: gloo's ranges are the communication, operators the compute.

As observed with torch 2.13 to 2.15, the actual span of a gloo collective is a range
``gloo:<operation>`` on a worker thread (for point-to-point, on the trainer's thread). The
``c10d::...`` operators on the trainer's thread show its launch. Waiting for a collective shows no
operator, so it is not compute.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from overlapkit.trace.intervals import Spans, both, either, minus, union
from overlapkit.trace.read.device_work import COMMUNICATION, COMPUTE, Work
from overlapkit.trace.read.recorded import Group, HostRanges, StepRanges

_OPERATORS = frozenset({"cpu_op", "Operator", "operator"})
_LAUNCHES = ("c10d::", "_c10d_functional::", "c10d_functional::", "record_param_comms")
_AUTOGRAD = "autograd::engine::evaluate_function"
_KERNEL_NAMESPACES = ("aten::", "mkldnn::", "quantized::", "prims::")
"""Operators that only compute. The autograd functions around them can also wait."""


def cpu_work(
    path: str, host: HostRanges, steps: StepRanges, groups: list[Group]
) -> tuple[Work, dict[int, int]] | None:
    """The work in the trace; None where it contains neither gloo ranges nor operators.

    Returns:
        The work, and for each event that is a range of gloo its index in `host`.
    """
    threads: dict[tuple[Any, Any], list[int]] = defaultdict(list)
    gloo: list[int] = []
    for index, (name, category) in enumerate(zip(host.names, host.categories, strict=True)):
        if name.startswith("gloo:"):
            gloo.append(index)
        if category in _OPERATORS or name.startswith("gloo:"):
            threads[host.threads[index]].append(index)
    events = [(host.start[i], host.end[i], host.names[i], COMMUNICATION, i) for i in gloo]
    communication = _spans(host, gloo)
    for thread in _trainer_threads(host, threads):
        events += _compute_of(host, threads[thread], communication)
    events = [event for event in events if event[1] > event[0]]
    if not events:
        return None
    events.sort(key=lambda event: (event[0], event[1]))
    names: dict[str, int] = {}
    numbered = {thread: number for number, thread in enumerate(threads)}
    work = Work(
        path=path,
        source="cpu",
        device=-1,
        start=np.asarray([e[0] for e in events], dtype=np.int64),
        end=np.asarray([e[1] for e in events], dtype=np.int64),
        name=np.asarray([names.setdefault(e[2], len(names)) for e in events], dtype=np.int32),
        kind=np.asarray([e[3] for e in events], dtype=np.int8),
        stream=np.asarray([numbered[host.threads[e[4]]] for e in events], dtype=np.int64),
        correlation=np.full(len(events), -1, dtype=np.int64),
        grid=np.full(len(events), -1, dtype=np.int32),
        call=np.full(len(events), -1, dtype=np.int32),
        names=list(names),
        calls=[],
        steps=steps.windows(),
        groups=groups,
    )
    work.warnings.append(
        "no device work: gloo's ranges are measured as communication, and the outermost operators "
        "of the trainer's threads as compute"
    )
    return work, {n: event[4] for n, event in enumerate(events) if event[3] == COMMUNICATION}


def _trainer_threads(
    host: HostRanges, threads: dict[tuple[Any, Any], list[int]]
) -> list[tuple[Any, Any]]:
    """The threads of forward and backward, without the workers of gloo and of data loaders."""
    chosen = [
        thread
        for thread, ranges in threads.items()
        if thread in host.step_threads or any(host.names[i].startswith(_AUTOGRAD) for i in ranges)
    ]
    if chosen:
        return chosen
    # Without steps and without a backward pass: the busiest thread.
    busy = {
        thread: _spans(host, [i for i in ranges if not host.names[i].startswith("gloo:")]).total
        for thread, ranges in threads.items()
    }
    return [max(busy, key=lambda thread: busy[thread])] if busy else []


def _spans(host: HostRanges, indices: list[int]) -> Spans:
    return union(
        np.asarray([host.start[i] for i in indices], dtype=np.int64),
        np.asarray([host.end[i] for i in indices], dtype=np.int64),
    )


def _compute_of(
    host: HostRanges, ranges: list[int], communication: Spans
) -> list[tuple[int, int, str, int, int]]:
    """The outermost operators of a thread, without the launches and waits inside them.

    A function that waits for a collective, as those of tensor parallelism do, shows no operator
    while it waits. So the time of a function in which communication runs and no kernel does is a
    wait.

    An asynchronous send or receive has its gloo range on this thread too, from its launch until the
    thread waits for it. Kernels inside that range hide it.

    Args:
        host: the ranges on the host.
        ranges: the indices of those on this thread.
        communication: the time of gloo's ranges on all threads.

    Returns:
        Start, end, name, kind and index of each operator.
    """
    excluded = _spans(host, [i for i in ranges if host.names[i].startswith(_LAUNCHES)])
    operators = [i for i in ranges if not host.names[i].startswith((*_LAUNCHES, "gloo:"))]
    kernels = _spans(host, [i for i in operators if host.names[i].startswith(_KERNEL_NAMESPACES)])
    waiting = minus(both(_spans(host, operators), communication), kernels)
    excluded = either(excluded, waiting)
    operators.sort(key=lambda i: (host.start[i], -host.end[i]))
    events = []
    reach = -(1 << 62)
    for i in operators:
        start, end = max(host.start[i], reach), host.end[i]
        if end <= start:
            continue
        reach = end
        piece = union(np.asarray([start], np.int64), np.asarray([end], np.int64))
        for a, b in _minus_near(piece, excluded):
            events.append((a, b, host.names[i], COMPUTE, i))
    return events


def _minus_near(piece: Spans, excluded: Spans) -> list[tuple[int, int]]:
    first = int(np.searchsorted(excluded.end, piece.start[0], side="right"))
    last = int(np.searchsorted(excluded.start, piece.end[0], side="left"))
    if first >= last:
        return [(int(piece.start[0]), int(piece.end[0]))]
    left = minus(piece, Spans(excluded.start[first:last], excluded.end[first:last]))
    return list(zip(left.start.tolist(), left.end.tolist(), strict=True))
