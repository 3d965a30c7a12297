"""What a depth of multi-token prediction does beside its layers.

The embedding of the next token and the hidden state are normalized and projected together
(Megatron-Core's core/transformer/multi_token_prediction.py). Its output layer and loss are counted
with the model's own.
"""

from __future__ import annotations

from functools import partial

from megatron.bridge.models.model_shape import ModelShape
from overlapkit.plan.figure import given, literal
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gemms import Gemm, linear
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.memory_traffic import MemoryTraffic, shared_tokens
from overlapkit.plan.workload.precision import Precision

NAME = "prediction"


def joining_gemms(shape: ModelShape, tokens: int, precision: Precision) -> list[Gemm]:
    """The projection of embedding and hidden state together, whose outputs are divided over TP."""
    return linear("eh_proj", tokens, 2 * shape.hidden, shape.hidden // shape.tp, precision)


def joining_traffic(
    shape: ModelShape, layout: Layout, base: Precision, low: Precision
) -> MemoryTraffic:
    """Embedding, two norms, their concatenation, the norm before the output layer, quantization."""
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    shared, size = shared_tokens(layout), literal(base.operand_bytes, "B")
    # The embedding is read and written; three norms read and write; both halves are put together.
    forward = shared * hidden * (2 + 3 * 2 + 2 * 2) * size
    # A norm reads input and gradient and writes a gradient; the embedding's is added in fp32.
    backward = shared * hidden * (3 * 3 + 2 * 2) * size + shared * hidden * literal(2 + 8, "B")
    if low.quantize_bytes:
        cast = literal(2 * low.quantize_bytes, "B")
        forward, backward = forward + shared * hidden * cast, backward + shared * hidden * cast
    return MemoryTraffic(
        forward.called("joining bytes, forward", "B"),
        backward.called("joining bytes, backward", "B"),
        # The embedding, three norms, the concatenation.
        kernels=5,
    )


def joining_collectives(shape: ModelShape, layout: Layout, base: Precision) -> list[Collective]:
    """The projection's input is gathered over the sequence, and its outputs over the width."""
    if layout.tp == 1:
        return []
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    size = literal(base.operand_bytes, "B")
    wide = (layout.tokens * hidden * size).called("activation", "B")
    both = (2 * wide).called("embedding and hidden state", "B")
    one = partial(Collective, dimension="TP", ranks=layout.tp, stride=1)
    outputs = one(name="eh_proj output", kind="all-gather", payload=wide, phase="forward")
    if not layout.sequence_parallel:
        gradient = one(name="eh_proj gradient", kind="all-reduce", payload=both, phase="backward")
        return [outputs, gradient]
    return [
        one(name="eh_proj input", kind="all-gather", payload=both, phase="forward"),
        outputs,
        one(name="eh_proj input", kind="all-gather", payload=both, phase="backward"),
        one(name="eh_proj gradient", kind="reduce-scatter", payload=both, phase="backward"),
    ]
