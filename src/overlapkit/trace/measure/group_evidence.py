"""What the launches of some communication say of all that runs in the same process group.

A group is a set of ranks, so it belongs to one dimension. Code that serves a dimension launches
only some of its communication where hooks and other threads launch the rest. The id of a
communicator of NCCL is the same in all its processes, of which often only one records ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import distinct
from overlapkit.trace.measure.evidence import NOTHING, Evidence, evidence
from overlapkit.trace.read.device_work import COMMUNICATION, Work
from overlapkit.trace.read.recorded import Call
from overlapkit.trace.read.stated import COMMUNICATOR


class Launched(NamedTuple):
    """Communication of one kind: what is known of it.

    Attributes:
        name: the number of the kernel's name.
        call: what was recorded about the collective.
        launch: what was open when it was launched.
    """

    name: int
    call: Call | None
    launch: Evidence


class Groups(NamedTuple):
    """What launches say of groups.

    Attributes:
        dimension: of each group of which all launches that say one say the same.
        mixed: groups in which code of another purpose than its name says communicates too.
    """

    dimension: dict[str, str]
    mixed: frozenset[str]


NO_GROUPS = Groups({}, frozenset())
"""Of files in which nothing tells groups apart."""


def launches(work: Work, events: NDArray[np.intp]) -> tuple[list[Launched], NDArray[np.intp]]:
    """The kinds of communication among events, and the kind of each event."""
    calls, origins = len(work.calls) + 1, len(work.origins) + 1
    keys = work.name[events].astype(np.int64) * calls + work.call[events] + 1
    unique, inverse = distinct(keys * origins + work.origin[events] + 1)
    found = []
    for key in unique.tolist():
        rest, origin = divmod(key, origins)
        name, number = divmod(rest, calls)
        launch = evidence(work.origins[origin - 1]) if origin else NOTHING
        found.append(Launched(name, work.calls[number - 1] if number else None, launch))
    return found, inverse


def groups_of(found: Iterable[Launched]) -> Groups:
    """What launches say of their groups.

    Where they say different dimensions, the group serves several, and has none of its own.
    """
    said: dict[str, set[str]] = {}
    mixed = set()
    for _, call, launch in found:
        if call is None or not call.group:
            continue
        if launch.dimension is not None:
            said.setdefault(call.group, set()).add(launch.dimension)
        if launch.mixed:
            mixed.add(call.group)
    alone = {group: found.pop() for group, found in said.items() if len(found) == 1}
    return Groups({g: d for g, d in alone.items() if g not in mixed}, frozenset(mixed))


def communicators_of(works: Sequence[Work]) -> Groups:
    """What launches in any process of a file say of communicators of NCCL."""
    if not any((call.group or "").startswith(COMMUNICATOR) for w in works for call in w.calls):
        return NO_GROUPS
    found = [
        one
        for work in works
        for one in launches(work, np.flatnonzero(work.kind == COMMUNICATION))[0]
    ]
    return groups_of(
        one for one in found if one.call and (one.call.group or "").startswith(COMMUNICATOR)
    )
