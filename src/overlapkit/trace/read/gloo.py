"""A trace of a GPU whose ranks communicate with gloo: its ranges are the communication.

Ranks that share a GPU cannot use NCCL. The device then shows only the copies to and from host
memory. The communication between them is recorded on the host, on the same clock.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.read.device_work import COMMUNICATION, Work
from overlapkit.trace.read.recorded import HostRanges

PREFIX = "gloo:"


def with_gloo(work: Work, host: HostRanges) -> tuple[Work, dict[int, int]]:
    """The work of the device and the gloo ranges of the host, a stream for each host thread.

    Returns:
        The work, and for each event that is a range of gloo its index in `host`.
    """
    ranges = [
        index
        for index, name in enumerate(host.names)
        if name.startswith(PREFIX) and host.end[index] > host.start[index]
    ]
    if not ranges:
        return work, {}
    names = list(work.names)
    number = {name: place for place, name in enumerate(names)}
    for index in ranges:
        if host.names[index] not in number:
            number[host.names[index]] = len(names)
            names.append(host.names[index])
    # A device's streams are not negative, and -1 stands for an unknown one.
    threads = {thread: -2 - place for place, thread in enumerate(dict.fromkeys(host.threads))}
    count = len(ranges)
    start = np.concatenate([work.start, np.asarray([host.start[i] for i in ranges], np.int64)])
    end = np.concatenate([work.end, np.asarray([host.end[i] for i in ranges], np.int64)])
    order = np.lexsort((end, start))
    unknown = np.full(count, -1)

    def joined(column: NDArray[Any], more: NDArray[Any] | list[int]) -> NDArray[Any]:
        both: NDArray[Any] = np.concatenate([column, np.asarray(more, column.dtype)])[order]
        return both

    events = {n: ranges[at - len(work)] for n, at in enumerate(order.tolist()) if at >= len(work)}
    result = replace(
        work,
        start=start[order],
        end=end[order],
        name=joined(work.name, [number[host.names[i]] for i in ranges]),
        kind=joined(work.kind, np.full(count, COMMUNICATION)),
        stream=joined(work.stream, [threads[host.threads[i]] for i in ranges]),
        correlation=joined(work.correlation, unknown),
        grid=joined(work.grid, unknown),
        call=joined(work.call, unknown),
        origin=joined(work.origin, unknown),
        names=names,
        warnings=[
            *work.warnings,
            f"no device communication: {count} gloo ranges on the host are measured as "
            "communication",
        ],
    )
    return result, events
