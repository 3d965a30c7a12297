"""What the launches of some communication say of all that runs in the same process group.

A group is a set of ranks, so it belongs to one dimension. Code that serves a dimension launches
only some of its communication where hooks and other threads launch the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from overlapkit.trace.measure.evidence import Evidence
from overlapkit.trace.read.recorded import Call


def group_key(call: Call | None) -> str | None:
    """What tells a call's group from others in a file; None where nothing does."""
    return None if call is None or not call.group else call.group


def dimensions_of_groups(launched: Iterable[tuple[Call | None, Evidence]]) -> dict[str, str]:
    """The dimension of each group of which the launches say one.

    Where launches say different ones, the group serves several: it is left out.

    Args:
        launched: calls, and what was open at the launch of each.
    """
    said: dict[str, set[str]] = {}
    for call, launch in launched:
        group = group_key(call)
        if group is not None and launch.dimension is not None:
            said.setdefault(group, set()).add(launch.dimension)
    return {group: found.pop() for group, found in said.items() if len(found) == 1}
