"""Traces of several ranks that were put together in one file, of GPUs or of CPU ranks.

Programs that merge traces for a viewer leave the numbers of devices, streams and launches as they
are in each rank, where all of these begin anew. They only rewrite the process of each event: into
"[TP03] 4242", "[TP03 4242]" or "[rank 3] 4242", or by adding a million for each rank.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from overlapkit.errors import InputError
from overlapkit.trace.read.recorded import Reading

_TAG = re.compile(r"\[?\s*(?P<tag>[A-Za-z]+[-_ ]?\d+)(?:\]\s*|\s+)-?\d+\]?\s*$")
_MILLION = 1_000_000
_OPERATORS = frozenset({"cpu_op", "Operator", "operator"})


@cache
def tag_of(process: Any) -> str | None:
    """What the process of an event tells of its rank; None where it tells nothing."""
    if isinstance(process, int):
        return f"rank {process // _MILLION}"
    found = _TAG.match(process) if isinstance(process, str) else None
    return None if found is None else found["tag"]


def rank_in(tag: str) -> int:
    """The rank that a tag names."""
    return int(re.findall(r"\d+", tag)[-1])


def tags_of(path: str, reading: Reading) -> list[str]:
    """The tags of the ranks in a file, in order; none for a file of one rank.

    Args:
        path: the file, for messages.
        reading: all of it.

    Raises:
        InputError: several ranks are in it, and nothing tells their launches apart.
    """
    if not reading.devices:
        return _tags_on_host(path, reading)
    tags = {tag_of(process) for process in reading.device_processes}
    launching = {tag_of(process) for process in reading.launch_processes}
    if None not in tags and len(tags) > 1 and launching <= tags:
        return sorted(filter(None, tags), key=lambda tag: (rank_in(tag), tag))
    # A profile is of one process. That of an event on a device is the number of the device.
    launchers = reading.launch_processes - {None}
    renamed = {p for p in reading.device_processes if isinstance(p, str) and not p.isdigit()}
    if max(len(launchers), len(renamed)) < 2:
        return []
    raise InputError(
        f"{path}: contains traces of several processes that were put together, and does not tell "
        "which launched what; give the trace of each rank"
    )


def _tags_on_host(path: str, reading: Reading) -> list[str]:
    """The tags of CPU ranks, by the processes of their operators."""
    processes = {
        process
        for (process, _), category in zip(
            reading.host.threads, reading.host.categories, strict=True
        )
        if category in _OPERATORS
    }
    if len(processes) < 2:
        return []
    tags = {tag_of(process) for process in processes}
    if None not in tags and len(tags) == len(processes):
        return sorted(filter(None, tags), key=lambda tag: (rank_in(tag), tag))
    raise InputError(
        f"{path}: contains traces of {len(processes)} processes that were put together, and does "
        "not tell which rank each is; give the trace of each rank"
    )
