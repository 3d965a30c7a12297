"""Which exchanges of context parallelism run beside attention, and which attention waits for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.rules.context import Context

RING = "p2p"
"""The exchange that Transformer Engine hides, and Megatron-Core's default."""

_KNOB = "model.cp_comm_type"

EXPOSED = rule(
    "core.cp-exchange-exposed",
    Dimension.CP,
    claim="With cp_comm_type p2p, the default, keys and values are sent around a ring while "
    "attention computes the previous block. a2a and all_gather exchange before attention starts, "
    "and a2a after it too: attention waits. Of a2a+p2p only the ring between the groups is hidden.",
    remedy="set model.cp_comm_type=p2p",
    edits=(Edit(_KNOB, RING),),
    source="Transformer Engine's context_parallel.py: AttnFuncWithCPAndKVP2P, "
    "AttnFuncWithCPAndKVAllGather, AttnFuncWithCPAndQKVOA2A",
)
LAYERS = rule(
    "core.cp-exchange-of-each-layer",
    Dimension.CP,
    claim="Megatron-Core refuses a list of cp_comm_type that has not one entry for each layer.",
    remedy="set model.cp_comm_type=p2p, or one kind for each layer",
    edits=(Edit(_KNOB, RING),),
    source="Megatron-Core's TransformerConfig.__post_init__",
)

_FOLLOWS = {
    "a2a": "its all-to-alls run before and after attention, which waits for them",
    "all_gather": "keys and values are gathered before attention, which waits for them",
    "a2a+p2p": "its all-to-alls run before and after attention, which waits for them, and only the "
    "ring between the groups is hidden",
}


def context_consequences(c: Context) -> Iterator[Decision]:
    """What the exchange of keys and values is hidden under, if anything."""
    size, given = c.of_model("context_parallel_size") or 1, c.of_model("cp_comm_type")
    if size == 1 or not given:
        return
    layers = c.of_model("num_layers")
    if isinstance(given, (list, tuple)) and len(given) > 1 and layers and len(given) != layers:
        yield LAYERS.error(_KNOB, given, f"it has {len(given)} entries, and num_layers is {layers}")
    exposed = {kind: number for kind, number in _kinds(given).items() if kind in _FOLLOWS}
    if not exposed:
        return
    several = len(_kinds(given)) > 1
    reason = "; ".join(
        f"{kind}{f' of {number} layers' if several else ''}: {_FOLLOWS[kind]}"
        for kind, number in exposed.items()
    )
    yield EXPOSED.decide(
        _KNOB,
        requested=None,
        effective=given,
        reason=f"CP={size} with {reason}. The ring of p2p is hidden under attention",
        outcome=Outcome.NOTE,
        remedy=either(EXPOSED.edits, "keep it where its bytes are fewer: compare profiles"),
        edits=EXPOSED.edits,
    )


def _kinds(given: Any) -> dict[str, int]:
    """Each kind of exchange, with the number of entries that have it."""
    entries = given if isinstance(given, (list, tuple)) else [given]
    return {str(kind): [*entries].count(kind) for kind in dict.fromkeys(entries)}
