"""Which operator launched each of gloo's ranges.

A collective runs on a worker thread of its process group, which takes launches in their order.
Nothing in a profile connects the two, and a group's threads have no names. So a range and a launch
belong together where no other launch of that kind was waiting, or where all that waited were
launched in the same ranges. What remains open is not matched. A send or receive has its range
inside its operator, on the same thread.

The kinds are told by names. As observed with torch 2.13 to 2.15, gloo's range for a reduce-scatter
is ``gloo:all_reduce``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from overlapkit.trace.intervals import Ints
from overlapkit.trace.read.device_work import Work
from overlapkit.trace.read.host.launched import Marks, Origins, open_at
from overlapkit.trace.read.kernel_names import operation
from overlapkit.trace.read.recorded import HostRanges

_LAUNCH = "c10d::"


def add_gloo_origins(
    work: Work,
    ranges: Mapping[int, int],
    host: HostRanges,
    marks: Marks,
    threads: Mapping[Any, int],
) -> None:
    """Note on the work what launched gloo's ranges.

    Args:
        work: the work; its events are numbered by their order.
        ranges: for each event that is a range of gloo, its index in `host`.
        host: the ranges on the host.
        marks: those of them that say what launched a communication.
        threads: the number of each thread in `marks`.
    """
    operators = [i for i, name in enumerate(host.names) if name.startswith(_LAUNCH)]
    numbers = [threads.get(host.threads[i][1], -1) for i in operators]
    found = open_at(
        marks,
        np.asarray([host.start[i] for i in operators], np.int64),
        np.asarray(numbers, np.int32),
    )
    place = {i: n for n, i in enumerate(operators)}
    launched = launches_of(
        host, ranges.values(), lambda operator: int(found.of_event[place[operator]])
    )
    matched = {event: place[launched[i]] for event, i in ranges.items() if i in launched}
    _note(work, matched, found)


def _note(work: Work, matched: Mapping[int, int], found: Origins) -> None:
    """Note the origins and calls of launches on the events that belong to them."""
    if not matched:
        return
    before = len(work.origins)
    work.origins = [*work.origins, *found.ranges]
    origin, call = work.origin.copy(), work.call.copy()
    for event, launch in matched.items():
        if found.of_event[launch] >= 0:
            origin[event] = found.of_event[launch] + before
        if found.call[launch] >= 0:
            call[event] = found.call[launch]
    work.origin, work.call = origin, call


def launches_of(
    host: HostRanges, gloo: Iterable[int], stack: Callable[[int], Hashable]
) -> dict[int, int]:
    """The operator that launched each of gloo's ranges, by their indices, where that is certain.

    Args:
        host: the ranges on the host.
        gloo: the indices of gloo's ranges.
        stack: what tells operators apart: the ranges in which one was launched.
    """
    ranges = sorted(gloo, key=lambda i: host.start[i])
    operators = sorted(
        (i for i, name in enumerate(host.names) if name.startswith(_LAUNCH)),
        key=lambda i: host.start[i],
    )
    result = _on_same_thread(host, ranges, operators)
    used = set(result.values())
    kinds = {operation(host.names[i]) for i in ranges if i not in result}
    waiting: dict[str, list[tuple[int, bool, int]]] = {}
    for i in operators:
        if i not in used:
            waiting.setdefault(_kind(host.names[i], kinds), []).append((host.start[i], False, i))
    for i in ranges:
        if i not in result:
            waiting.setdefault(operation(host.names[i]), []).append((host.start[i], True, i))
    for events in waiting.values():
        result |= _in_order(sorted(events), stack)
    return result


def _kind(name: str, kinds: set[str]) -> str:
    """The kind of the range that an operator of this name causes."""
    found = operation(name)
    return "all_reduce" if found == "reduce_scatter" and found not in kinds else found


def _on_same_thread(
    host: HostRanges, ranges: Sequence[int], operators: Sequence[int]
) -> dict[int, int]:
    """The operators inside which ranges begin on the same thread."""
    of_thread: dict[Any, list[int]] = {}
    for i in operators:
        of_thread.setdefault(host.threads[i], []).append(i)
    starts: dict[Any, Ints] = {
        thread: np.asarray([host.start[i] for i in of], np.int64)
        for thread, of in of_thread.items()
    }
    result = {}
    for i in ranges:
        of = of_thread.get(host.threads[i])
        if of is None:
            continue
        place = int(np.searchsorted(starts[host.threads[i]], host.start[i], side="right")) - 1
        if place >= 0 and host.start[i] < host.end[of[place]]:
            result[i] = of[place]
    return result


def _in_order(
    events: Sequence[tuple[int, bool, int]], stack: Callable[[int], Hashable]
) -> dict[int, int]:
    """The launches of ranges of one kind.

    Args:
        events: time, whether it is a range, and index of each launch and range, sorted.
        stack: as in `launches_of`.
    """
    result: dict[int, int] = {}
    launched: list[int] = []
    begun: list[int] = []
    several = False
    for _, is_range, index in [*events, (0, False, -1)]:
        if index < 0 or (not is_range and launched and len(begun) == len(launched)):
            # Nothing waits any more: what began since then was launched since then.
            if not several or len({stack(i) for i in launched}) == 1:
                result |= dict(zip(begun, launched, strict=False))
            launched, begun, several = [], [], False
        if not is_range:
            launched.append(index)
        elif len(begun) < len(launched):
            several = several or len(launched) - len(begun) > 1
            begun.append(index)
    return result
