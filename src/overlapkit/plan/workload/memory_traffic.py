"""Bytes that the kernels of a transformer layer move through memory, GEMMs and attention excluded.

Norms, rotary embedding, activation, residual additions and quantization do little arithmetic: their
time is their bytes over the memory's bandwidth. Reads and writes of entire tensors are counted, for
kernels as Transformer Engine fuses them. Outside attention and MLP, sequence parallelism divides
tensors over TP; inside, they are a TP rank's part of the heads or of the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from megatron.bridge.models.model_shape import ModelShape
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.precision import Precision

LOGIT_BYTES_FORWARD = 2 + 4
"""Memory traffic of one logit in the forward of a fused cross entropy (Liger Kernel, 2024, section
3.2): 2 bytes are read for its row's maximum and sum, which one pass finds, then read again and
written in place as the gradient."""


@dataclass(frozen=True)
class MemoryTraffic:
    """Bytes of the memory-bound kernels of one layer and microbatch.

    Attributes:
        forward, backward: bytes.
        kernels: that read and write them, in each of the two.
        kind: "permutation" of tokens to experts, "loss" (the cross entropy), "scan"
            (Mamba's kernels, which are slower than memory), or "stream".
    """

    forward: Figure
    backward: Figure
    kernels: int = 0
    kind: str = "stream"


def attention_traffic(
    shape: ModelShape, layout: Layout, base: Precision, low: Precision
) -> MemoryTraffic:
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
    tokens, shared = layout.tokens, shared_tokens(layout)
    size, cast = literal(base.operand_bytes, "B"), literal(low.quantize_bytes, "B")
    # Norm: read, write. Residual: two read, one written. Rotation: read, write.
    forward = shared * hidden * (2 + 3) * size + tokens * rotated * 2 * size
    # Norm: gradient and input read, gradient written; then the residual's gradient is added.
    backward = shared * hidden * (3 + 3) * size + tokens * rotated * 2 * size
    if low.quantize_bytes:
        forward = forward + (shared * hidden + tokens * out) * cast
        backward = backward + (shared * hidden + tokens * inside) * cast
    return MemoryTraffic(
        forward.called("attention block bytes, forward", "B"),
        backward.called("attention block bytes, backward", "B"),
        # The norm, queries' and keys' rotation, the residual. Quantization is fused with them.
        kernels=4,
    )


def ring_traffic(
    shape: ModelShape, layout: Layout, base: Precision, kind: str
) -> tuple[MemoryTraffic, ...]:
    """What context parallelism's ring adds: the results of its steps are put together.

    Each step of the forward has an output of its own, which is rescaled and added to a sum in fp32.
    Each step of the backward adds its gradients of queries, keys and values to those of the steps
    before (Transformer Engine's context_parallel.py).

    Args:
        kind: cp_comm_type.
    """
    if layout.cp == 1 or "p2p" not in kind:
        return ()
    steps = given("steps of the ring", layout.cp, "", "model.context_parallel_size")
    queries, keys, values = attention_widths(shape)
    out = given(
        "attention output width per rank",
        attention_output(shape) / shape.tp,
        "",
        "heads x head size / TP",
    )
    inside = given(
        "attention width per rank",
        (queries + keys + values) / shape.tp,
        "",
        "heads x head size / TP",
    )
    size = base.operand_bytes
    forward = steps * layout.tokens * out * literal(size + 4 + 4, "B")
    backward = steps * layout.tokens * inside * literal(3 * size, "B")
    return (
        MemoryTraffic(
            forward.called("bytes to add up ring steps, forward", "B"),
            backward.called("bytes to add up ring steps, backward", "B"),
            kernels=layout.cp,
        ),
    )


class MlpRows(NamedTuple):
    """What passes through a feed-forward block on one rank.

    Attributes:
        width: of the middle of the block on this rank, before gating.
        rows: tokens that pass through it on this rank.
        entering: tokens whose input this rank quantizes: its share of them where TP ranks gather
            what they have quantized, all copies where they come from a router.
        inputs: width of what enters; None for the hidden size.
    """

    width: float
    rows: Figure
    entering: Figure
    inputs: Figure | None = None


def mlp_traffic(
    shape: ModelShape, layout: Layout, base: Precision, low: Precision, passing: MlpRows
) -> MemoryTraffic:
    """Norm, activation, residual addition and quantization around a feed-forward block."""
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    middle = given("feed-forward width per rank", passing.width, "", "feed-forward width / TP")
    wide = 2 if shape.gated else 1
    inputs = passing.inputs or hidden
    shared, rows = shared_tokens(layout), passing.rows
    size, cast = literal(base.operand_bytes, "B"), literal(low.quantize_bytes, "B")
    forward = shared * hidden * (2 + 3) * size + rows * middle * (wide + 1) * size
    # The activation reads its input and its output's gradient, and writes its input's gradient.
    backward = shared * hidden * (3 + 3) * size + rows * middle * (1 + 2 * wide) * size
    if low.quantize_bytes:
        forward = forward + (passing.entering * inputs + rows * middle) * cast
        backward = backward + (passing.entering * inputs + rows * middle * wide) * cast
    return MemoryTraffic(
        forward.called("feed-forward block bytes, forward", "B"),
        backward.called("feed-forward block bytes, backward", "B"),
        # The norm, the activation, the residual.
        kernels=3,
    )


def expert_traffic(
    shape: ModelShape, routed: Figure, base: Precision, *, sorted_again: bool
) -> MemoryTraffic:
    """Permuting token copies to their experts and back: each is read and written, both ways.

    Args:
        shape: of the model.
        routed: copies of tokens on this rank.
        base: precision of activations.
        sorted_again: whether what arrives is put in the order of this rank's experts by a pass of
            its own, and back afterwards, as Megatron-Core's all-to-all dispatcher does with several
            experts on a rank (`MoEAlltoAllTokenDispatcher.dispatch_postprocess`).
    """
    passes = given(
        "passes over the tokens", 4 if sorted_again else 2, "", "model.moe_token_dispatcher_type"
    )
    moved = passes * routed * expert_input(shape) * literal(2 * base.operand_bytes, "B")
    return MemoryTraffic(
        moved.called("permutation bytes, forward", "B"),
        moved.called("permutation bytes, backward", "B"),
        kernels=4 if sorted_again else 2,
        kind="permutation",
    )


def expert_bias_traffic(shape: ModelShape, routed: Figure, base: Precision) -> MemoryTraffic:
    """Adding the bias of the experts' second layer, which no kernel fuses.

    Megatron-Core multiplies it by the fp32 weight that the router gives each token, adds it expert
    by expert, and joins the results (`TEGroupedMLP._apply_bias`). Per element of the output, in the
    forward: the product is written; output and product are read, their fp32 sum is written; the
    joined sums are read and written twice, the second time in the output's type. In the backward:
    the gradient is cast to fp32; for the bias and for the router's weight it is read, multiplied,
    written, and read again to be summed; for the output it is cast back and joined.
    """
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    size = base.operand_bytes
    forward = 4 + (size + 4 + 4) + (4 + 4) + (4 + size)
    backward = (size + 4) + 2 * (4 + 4 + 4) + (4 + size) + (size + size)
    return MemoryTraffic(
        (routed * hidden * literal(forward, "B")).called("experts' bias bytes, forward", "B"),
        (routed * hidden * literal(backward, "B")).called("experts' bias bytes, backward", "B"),
    )


def expert_input(shape: ModelShape) -> Figure:
    """Width of a token as it goes to its experts."""
    latent = shape.experts.latent if shape.experts else 0
    if latent:
        return given("width that experts work on", latent, "", "model.moe_latent_size")
    return given("hidden size", shape.hidden, "", "model.hidden_size")


def loss_traffic(shape: ModelShape, layout: Layout) -> MemoryTraffic:
    """Cross entropy over a rank's part of the vocabulary; the forward computes its gradient."""
    vocab = given("vocabulary per rank", shape.vocab / shape.tp, "", "padded vocabulary / TP")
    forward = layout.tokens * vocab * literal(LOGIT_BYTES_FORWARD, "B")
    return MemoryTraffic(
        forward.called("loss bytes, forward", "B"),
        (layout.tokens * vocab * literal(4, "B")).called("loss bytes, backward", "B"),
        kernels=2,
        kind="loss",
    )


def shared_tokens(layout: Layout) -> Figure:
    """Tokens that one rank normalizes and adds: with sequence parallelism its share, else all."""
    if not layout.sequence_parallel:
        return layout.tokens
    ranks = given("TP", layout.tp, "ranks", "model.tensor_model_parallel_size")
    return (layout.tokens / ranks).called("tokens of a microbatch on a TP rank", "tokens")


def attention_widths(shape: ModelShape) -> tuple[int, int, int]:
    """Widths of all heads' queries, keys and values, over all TP ranks."""
    if shape.latent:
        head = shape.latent.qk_head_dim + shape.latent.qk_position_dim
        return shape.heads * head, shape.heads * head, shape.heads * shape.latent.v_head_dim
    # With fewer groups than TP ranks, each rank keeps an entire group.
    kv = max(shape.query_groups, shape.tp) * shape.head_dim
    return shape.heads * shape.head_dim, kv, kv


def attention_output(shape: ModelShape) -> int:
    """Width of the output of attention, over all TP ranks."""
    return shape.heads * (shape.latent.v_head_dim if shape.latent else shape.head_dim)
