"""The arithmetic of attention: scores and their product with the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.model_shape import ModelShape
from overlapkit.errors import InputError
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.layout import Layout

TILE_ROWS = 128
"""Positions of a block of scores that a flash-attention kernel computes or skips as a whole
(FlashAttention-2, 2023, section 3.3)."""

BACKWARD_PRODUCTS = 5 / 2
"""Matrix products of a flash-attention backward per product of the forward: five for two, since it
computes the scores again (FlashAttention-2, 2023, section 3.1)."""


@dataclass(frozen=True)
class Attention:
    """Operations of one layer's attention on one rank and microbatch.

    Attributes:
        forward, backward: as executed.
        counted: forward and backward as model FLOPs, without what the backward computes again.
        exponentials: of one pass, one for each score.
        rows: query positions of all heads that one kernel works on.
        head: mean of the sizes of a query-key head and of a value head.
    """

    forward: Figure
    backward: Figure
    counted: Figure
    exponentials: Figure
    rows: float
    head: float


def attention_of(model: Any, shape: ModelShape, layout: Layout, layer: int) -> Attention:
    """Causal attention: half of the `s x s` pairs of positions are skipped.

    Raises:
        InputError: window_size is not a pair of numbers.
    """
    length = given("sequence", layout.sequence, "tokens", "model.seq_length")
    sequences = given("micro-batch", layout.micro_batch, "sequences", "train.micro_batch_size")
    ranks = given("CP", layout.cp, "ranks", "model.context_parallel_size")
    pairs = (length * length / 2).called("causal pairs of positions", "", "half of sequence^2")
    executed = pairs
    window = window_of(model, layer)
    if window is not None and window < layout.sequence:
        pairs = _within(length, window)
        # Blocks of scores that the window's edges cross are computed entirely.
        executed = _within(length, min(window + TILE_ROWS, layout.sequence))
    head = shape.head_dim * 2
    if shape.latent:
        head = shape.latent.qk_head_dim + shape.latent.qk_position_dim + shape.latent.v_head_dim
    heads = given("heads per rank", shape.heads / shape.tp, "", "model.num_attention_heads / TP")
    width = given("query-key and value head size", head, "", "head sizes")
    scores = (executed * heads * sequences / ranks).called("attention scores")
    forward = (literal(2, "FLOP") * scores * width).called("attention FLOPs, forward", "FLOP")
    counted = (literal(6, "FLOP") * pairs * heads * width * sequences / ranks).called(
        "attention model FLOPs", "FLOP", "backward counted as twice forward"
    )
    return Attention(
        forward=forward,
        backward=(BACKWARD_PRODUCTS * forward).called(
            "attention FLOPs, backward", "FLOP", "five products for two of the forward"
        ),
        counted=counted,
        exponentials=scores,
        rows=layout.tokens.value * shape.heads / shape.tp,
        head=head / 2,
    )


def _within(length: Figure, window: int) -> Figure:
    """Pairs of positions at most `window` apart, of a sequence of `length`."""
    span = given("window", window, "tokens", "model.window_size")
    return (length * span - span * span / 2).called("pairs of positions in the window", "")


def window_of(model: Any, layer: int) -> int | None:
    """Tokens that a position attends to in this layer; None for all before it.

    Raises:
        InputError: window_size is not a pair of numbers.
    """
    window = getattr(model, "window_size", None)
    if window is None:
        return None
    back = window[0] if isinstance(window, (list, tuple)) and len(window) == 2 else None
    if not isinstance(back, int):
        raise InputError(f"model.window_size={window!r}: want a pair such as [127, 0], or null")
    frequency = getattr(model, "window_attn_skip_freq", None)
    skips = (
        (layer + 1) % frequency == 0
        if isinstance(frequency, int) and frequency > 0
        else isinstance(frequency, (list, tuple))
        and layer < len(frequency)
        and not frequency[layer]
    )
    return None if skips or back < 0 else back + 1
