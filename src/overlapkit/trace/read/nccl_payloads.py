"""What NCCL's NVTX ranges carry in an export of Nsight Systems: communicator and message size.

Nsight Systems keeps the payload of a range as bytes, and its layout in a table
(NVTX_PAYLOAD_SCHEMA_ENTRIES). A header of 32 bytes comes first: domain, schema and sizes. The
names of the fields are those of NCCL (src/include/nvtx_payload_schemas.h), and the numbers of their
types those of nvToolsExtPayload.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from overlapkit.trace.read.recorded import Call
from overlapkit.trace.read.stated import COMMUNICATOR

_HEADER = struct.Struct("<IIIIQQ")
_FORMATS = {5: "<i", 6: "<I", 15: "<i", 16: "<I", 17: "<q", 18: "<Q", 22: "<Q"}
"""Types of fields that are integers: int, unsigned, int32, uint32, int64, uint64, size_t."""

_COMMUNICATOR, _RANKS, _BYTES = "NCCL communicator ID", "No. of ranks", "Message size [bytes]"
_GATHERS = ("ncclAllGather", "ncclReduceScatter")
"""Their message is what one rank contributes, or receives, not that of all ranks."""


@dataclass(frozen=True)
class NcclRange:
    """A range of NCCL on one thread."""

    name: str
    thread: Any
    start: int
    payload: Mapping[str, int]


@dataclass
class Payloads:
    """The layouts of payloads, by domain and schema."""

    layouts: dict[tuple[int, int], list[tuple[str, str, int]]] = field(default_factory=dict)

    def add(self, domain: Any, schema: Any, kind: Any, name: Any, offset: Any) -> None:
        """Add a field of a schema, as its row states it; others than integers are ignored."""
        known = isinstance(domain, int) and isinstance(schema, int) and isinstance(name, str)
        if known and kind in _FORMATS:
            at = offset if isinstance(offset, int) else 0
            self.layouts.setdefault((domain, schema), []).append((name, _FORMATS[kind], at))

    def read(self, data: Any) -> dict[str, int]:
        """The fields of a payload; empty where its layout is unknown, or it is too short."""
        if not isinstance(data, bytes) or len(data) < _HEADER.size:
            return {}
        domain, _, schema, _, _, _ = _HEADER.unpack_from(data)
        found = {}
        for name, kind, offset in self.layouts.get((domain, schema), ()):
            place = _HEADER.size + offset
            if offset >= 0 and place + struct.calcsize(kind) <= len(data):
                (found[name],) = struct.unpack_from(kind, data, place)
        return found


def calls_of(ranges: Iterable[NcclRange]) -> list[Call | None]:
    """What each range says of the collective that it launches; None where it says nothing.

    Inside a group of calls the work is launched where the group ends. That range says what all
    calls of the group have in common.

    Args:
        ranges: all of NCCL's ranges.
    """
    given = list(ranges)
    sizes = {
        r.payload[_COMMUNICATOR]: r.payload[_RANKS]
        for r in given
        if _COMMUNICATOR in r.payload and r.payload.get(_RANKS, 0) > 0
    }
    result: list[Call | None] = [None] * len(given)
    grouped: dict[Any, list[Call]] = {}
    for index in sorted(range(len(given)), key=lambda i: given[i].start):
        one = given[index]
        if one.name == "ncclGroupStart":
            grouped[one.thread] = []
        elif one.name == "ncclGroupEnd":
            inside = set(grouped.pop(one.thread, ()))
            result[index] = inside.pop() if len(inside) == 1 else _common(inside)
        elif _COMMUNICATOR in one.payload:
            result[index] = _call(one, sizes)
            if _BYTES in one.payload:
                grouped.setdefault(one.thread, []).append(result[index] or Call())
    return result


def _call(one: NcclRange, sizes: Mapping[int, int]) -> Call:
    """What one range says."""
    communicator = one.payload[_COMMUNICATOR]
    ranks = sizes.get(communicator)
    message = one.payload.get(_BYTES)
    if one.name in _GATHERS:
        message = message * ranks if message is not None and ranks is not None else None
    return Call(
        elements_in=message,
        dtype=None if message is None else "byte",
        group_size=ranks,
        group=f"{COMMUNICATOR}{communicator & (1 << 64) - 1:x}",
    )


def _common(calls: Iterable[Call]) -> Call | None:
    """What several calls have in common: their communicator; None without one."""
    groups = {(call.group, call.group_size) for call in calls}
    if len(groups) != 1:
        return None
    ((group, size),) = groups
    return Call(group=group, group_size=size)
