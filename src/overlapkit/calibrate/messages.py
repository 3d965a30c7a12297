"""Collectives of a profile: kind, size, ranks, and whether they leave the node."""

from __future__ import annotations

from typing import Literal, NamedTuple

from overlapkit.calibrate.products import Unread
from overlapkit.plan.rates.document import CollectiveKind
from overlapkit.trace.measure.collectives import message_bytes
from overlapkit.trace.read.kernel_names import operation
from overlapkit.trace.read.recorded import Call
from overlapkit.trace.shapes.operators import Message, Profile

_KINDS: dict[str, CollectiveKind] = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "all_to_all": "all-to-all",
    "send_recv": "send",
}


class Sent(NamedTuple):
    """A message, as `RatesCollective` has it, and its seconds."""

    kind: CollectiveKind
    link: Literal["node", "network"]
    ranks: int
    bytes: int
    seconds: float


def sent(message: Message, profile: Profile, domain: int) -> Sent | Unread:
    """What a collective sent.

    Args:
        message: the collective.
        profile: that it is from.
        domain: consecutive ranks that NVLink connects.
    """
    call = message.call
    name = call.name or message.name
    kind = _KINDS.get(operation(name))
    if kind is None or "coalesced" in name:
        return Unread("collectives of other kinds, or several in one kernel")
    size = message_bytes(call)
    if not size or not message.ns:
        return Unread("collectives whose size was not recorded")
    members = _members(call, profile)
    ranks = 2 if kind == "send" else call.group_size or len(members)
    if ranks < 2:
        return Unread("collectives whose number of ranks was not recorded")
    link = _link(members, profile, domain)
    if link is None:
        return Unread("collectives of ranks that were not recorded")
    return Sent(kind, link, ranks, size, message.ns * 1e-9)


def _members(call: Call, profile: Profile) -> tuple[int, ...]:
    """The ranks of a group; empty where they were not recorded."""
    if call.ranks:
        return call.ranks
    return next((group.ranks for group in profile.groups if group.name == call.group), ())


def _link(
    members: tuple[int, ...], profile: Profile, domain: int
) -> Literal["node", "network"] | None:
    """Whether a group is within a domain; None where that is not known."""
    if profile.world_size is not None and profile.world_size <= domain:
        return "node"
    if not members:
        return None
    return "node" if len({rank // domain for rank in members}) == 1 else "network"
