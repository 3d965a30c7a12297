"""What a transformer layer's kernels other than GEMMs and attention move through memory.

Norms, rotary embedding, activation, residual additions and quantization do little arithmetic: their
time is their bytes over the memory's bandwidth. Counted are reads and writes of whole tensors, each
kernel fused as Transformer Engine fuses it. Tensors outside of attention and MLP are shared out
over TP with sequence parallelism; those within are a TP rank's part of the heads or of the width.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.bridge.models.model_shape import ModelShape
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.precision import Precision

LOGIT_BYTES_FORWARD = 2 + 4
"""Memory traffic of one logit in the forward: read for its row's maximum and sum, and written back
in place as the gradient, by a fused cross entropy (Liger Kernel, 2024, section 3.2); the largest
and the sum are found in one pass, so 2 bytes are read twice and written once."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of the memory-bound kernels of one layer and microbatch."""

    forward: Figure
    backward: Figure


def attention_traffic(
    shape: ModelShape, layout: Layout, base: Precision, low: Precision
) -> Traffic:
    """Norm, rotary embedding, residual addition and quantization around attention."""
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    queries, keys, values = attention_widths(shape)
    inside = given(
        "attention width per rank",
        (queries + keys + values) / shape.tp,
        "",
        "heads x head size / TP",
    )
    rotated = given(
        "rotated width per rank", (queries + keys) / shape.tp, "", "heads x head size / TP"
    )
    out = given(
        "attention output width per rank",
        attention_output(shape) / shape.tp,
        "",
        "heads x head size / TP",
    )
    whole, shared = layout.tokens, shared_tokens(layout)
    size, cast = literal(base.operand_bytes, "B"), literal(low.quantize_bytes, "B")
    # Norm: read, write. Residual: two read, one written. Rotation: read, write.
    forward = shared * hidden * (2 + 3) * size + whole * rotated * 2 * size
    # Norm: gradient and input read, gradient written; then the residual's gradient is added.
    backward = shared * hidden * (3 + 3) * size + whole * rotated * 2 * size
    if low.quantize_bytes:
        forward = forward + (shared * hidden + whole * out) * cast
        backward = backward + (shared * hidden + whole * inside) * cast
    return Traffic(
        forward.called("attention block bytes, forward", "B"),
        backward.called("attention block bytes, backward", "B"),
    )


def mlp_traffic(
    shape: ModelShape,
    layout: Layout,
    base: Precision,
    low: Precision,
    width: float,
    rows: Figure,
    entering: Figure,
) -> Traffic:
    """Norm, activation, residual addition and quantization around a feed-forward block.

    Args:
        width: of the block's middle on this rank, before gating.
        rows: tokens that pass through it on this rank.
        entering: tokens whose input this rank quantizes: its share of them where TP ranks gather
            what they have quantized, all copies where they come from a router.
    """
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    middle = given("feed-forward width per rank", width, "", "feed-forward width / TP")
    wide = 2 if shape.gated else 1
    shared = shared_tokens(layout)
    size, cast = literal(base.operand_bytes, "B"), literal(low.quantize_bytes, "B")
    forward = shared * hidden * (2 + 3) * size + rows * middle * (wide + 1) * size
    # The activation's gradient: that of its output and its input read, that of its input written.
    backward = shared * hidden * (3 + 3) * size + rows * middle * (1 + 2 * wide) * size
    if low.quantize_bytes:
        forward = forward + (entering * hidden + rows * middle) * cast
        backward = backward + (entering * hidden + rows * middle * wide) * cast
    return Traffic(
        forward.called("feed-forward block bytes, forward", "B"),
        backward.called("feed-forward block bytes, backward", "B"),
    )


def expert_traffic(shape: ModelShape, routed: Figure, base: Precision) -> Traffic:
    """Permuting token copies to their experts and back: each read and written, both ways."""
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    moved = routed * hidden * (2 + 2) * literal(base.operand_bytes, "B")
    return Traffic(
        moved.called("permutation bytes, forward", "B"),
        moved.called("permutation bytes, backward", "B"),
    )


def loss_traffic(shape: ModelShape, layout: Layout) -> Traffic:
    """Cross entropy over a rank's part of the vocabulary; its gradient is made in the forward."""
    vocab = given("vocabulary per rank", shape.vocab / shape.tp, "", "padded vocabulary / TP")
    forward = layout.tokens * vocab * literal(LOGIT_BYTES_FORWARD, "B")
    return Traffic(
        forward.called("loss bytes, forward", "B"),
        (layout.tokens * vocab * literal(4, "B")).called("loss bytes, backward", "B"),
    )


def shared_tokens(layout: Layout) -> Figure:
    """Tokens that one rank normalizes and adds: its share with sequence parallelism, else all."""
    if not layout.sequence_parallel:
        return layout.tokens
    ranks = given("TP", layout.tp, "ranks", "model.tensor_model_parallel_size")
    return (layout.tokens / ranks).called("tokens of a microbatch on a TP rank", "tokens")


def attention_widths(shape: ModelShape) -> tuple[int, int, int]:
    """Widths of all heads' queries, keys and values, over all TP ranks."""
    if shape.latent:
        head = shape.latent.qk_head_dim + shape.latent.qk_position_dim
        return shape.heads * head, shape.heads * head, shape.heads * shape.latent.v_head_dim
    # With fewer groups than TP ranks, each rank keeps a group whole.
    kv = max(shape.query_groups, shape.tp) * shape.head_dim
    return shape.heads * shape.head_dim, kv, kv


def attention_output(shape: ModelShape) -> int:
    """Width of what attention yields, over all TP ranks."""
    return shape.heads * (shape.latent.v_head_dim if shape.latent else shape.head_dim)
