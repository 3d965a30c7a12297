"""Kernels that may communicate, in the JSON document of `overlapkit trace`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.output.numbers import us_of_ns
from overlapkit.trace.measure.unrecognized import Reason, Unrecognized


class TraceUnrecognized(Struct, frozen=True, kw_only=True):
    """A kernel that may communicate, and counts as compute."""

    name: Annotated[str, Meta(description="name of the kernel, shortened")]
    reason: Annotated[
        Reason,
        Meta(
            description="`name`: its name speaks of communication, and it is of no known library: "
            "`--comm` counts it as communication; `fused`: it computes and communicates at once"
        ),
    ]
    count: Annotated[int, Meta(description="how many started in the steps")]
    busy_us: Annotated[float, Meta(description="time during which any of them ran")]


def unrecognized_of(found: Sequence[Unrecognized]) -> list[TraceUnrecognized]:
    """The kernels of one rank."""
    return [
        TraceUnrecognized(name=u.name, reason=u.reason, count=u.count, busy_us=us_of_ns(u.busy_ns))
        for u in found
    ]
