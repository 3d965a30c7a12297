"""Megatron-LM's check of multi-token prediction."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, rule
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.megatron_lm.request import stops
from megatron.bridge.training.rules.context import Context

_POSITIONS = "model.position_embedding_type"
_ACCEPTED = ("rope", "none")

MTP_POSITIONS = rule(
    "lm.mtp-positions",
    Dimension.ANY,
    claim="--mtp-num-layers with a --position-embedding-type other than rope and none (the default "
    "is learned_absolute) stops a Megatron-LM job at start.",
    remedy="pass --position-embedding-type rope, or omit --mtp-num-layers",
    edits=(Edit(_POSITIONS, "rope"),),
    source="Megatron-LM megatron/training/arguments.py",
)


def prediction_checks(c: Context) -> Iterator[Decision]:
    """Whether multi-token prediction has positions that it is tested with."""
    given = c.of_model("position_embedding_type") or "learned_absolute"
    depth = c.of_model("mtp_num_layers") or 0
    if depth and given not in _ACCEPTED:
        yield MTP_POSITIONS.error(
            _POSITIONS,
            given,
            stops(f"--mtp-num-layers is {depth} and --position-embedding-type is {given}"),
            either(MTP_POSITIONS.edits, "omit --mtp-num-layers"),
            MTP_POSITIONS.edits,
        )
