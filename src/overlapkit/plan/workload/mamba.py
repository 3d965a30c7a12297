"""What a Mamba-2 block does on one rank: two projections, and a convolution and a scan between.

The projections are matrix products like others. The scan works on chunks of `CHUNK` tokens
(Transformers are SSMs, 2024, section 6): it has many small products and a large state, and is
counted by the bytes that its kernels move. How fast they move them is a constant of its own.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from megatron.bridge.models.model_shape import Mamba, ModelShape
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.collectives import PHASES, Collective
from overlapkit.plan.workload.gemms import Gemm, linear
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.memory_traffic import MemoryTraffic, shared_tokens
from overlapkit.plan.workload.precision import Precision

CHUNK = 128
"""Tokens of a chunk of the scan (chunk_size of Megatron-Core's MambaMixer)."""
SCAN_KERNELS = 15
"""Kernels of convolution, scan and gated norm: 7 in the forward and 23 in the backward."""
SCAN_FLOPS = 7
"""Operations for each token, inner channel and element of its state, of a forward, as Megatron
counts model FLOPs (megatron/training/training.py, num_floating_point_operations)."""


def mamba_gemms(shape: ModelShape, mamba: Mamba, tokens: int, precision: Precision) -> list[Gemm]:
    """The projections into and out of the block."""
    return [
        *linear("in_proj", tokens, shape.hidden, mamba.projected // shape.tp, precision),
        *linear("out_proj", tokens, mamba.inner // shape.tp, shape.hidden, precision),
    ]


def scan_flops(shape: ModelShape, mamba: Mamba, layout: Layout) -> Figure:
    """Model FLOPs of the scan, forward and backward."""
    inner = given("inner width per rank", mamba.inner / shape.tp, "", _WIDTH)
    state = given("state", mamba.state, "", "model.mamba_state_dim")
    return (literal(3 * SCAN_FLOPS, "FLOP") * layout.tokens * inner * state).called(
        "scan model FLOPs", "FLOP", "backward counted as twice forward"
    )


class _Passes(NamedTuple):
    """Bytes for each token and element of a kind of tensor that the kernels of a pass move.

    Attributes:
        inner: of the values, the gate and the output, `heads x head size` wide.
        mixing: of the two matrices that mix the state in and out, each `groups x state` wide.
        states: of the states between chunks: `inner x state` for each chunk.
        scores: of the products of the two matrices: `groups x chunk`.
    """

    inner: float
    mixing: float
    states: float
    scores: float


def _passes(size: float) -> tuple[_Passes, _Passes]:
    """The forward and the backward of mamba_ssm's kernels (ops/triton/ssd_combined.py), for
    activations of `size` bytes; states and scores are in fp32 where `size` is not said.

    Forward: the convolution reads and writes values and both matrices; the states of chunks are
    made, passed on and used; scores are written and read; the gated norm reads output and gate and
    writes one. The backward does all but the last two again, and its kernels for the gradients of
    values, matrices, scores and time steps each read values, output's gradient or states.
    """
    forward = _Passes(inner=8 * size, mixing=8 * size, states=8 + 2 * size, scores=8)
    backward = _Passes(inner=22 * size, mixing=17 * size + 16, states=24 + 5 * size, scores=24)
    return forward, backward


def mamba_traffic(
    shape: ModelShape, mamba: Mamba, layout: Layout, base: Precision, low: Precision
) -> list[MemoryTraffic]:
    """Norm, residual addition and quantization of a block; and its convolution and scan."""
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    inner = given("inner width per rank", mamba.inner / shape.tp, "", _WIDTH)
    projected = given("projected width per rank", mamba.projected / shape.tp, "", _PROJECTED)
    tokens, shared = layout.tokens, shared_tokens(layout)
    size, cast = literal(base.operand_bytes, "B"), literal(low.quantize_bytes, "B")
    # As around attention.
    forward = shared * hidden * (2 + 3) * size
    backward = shared * hidden * (3 + 3) * size
    if low.quantize_bytes:
        forward = forward + (shared * hidden + tokens * inner) * cast
        backward = backward + (shared * hidden + tokens * projected) * cast
    around = MemoryTraffic(
        forward.called("Mamba block bytes, forward", "B"),
        backward.called("Mamba block bytes, backward", "B"),
        # The norm and the residual.
        kernels=2,
    )
    widths = (
        mamba.inner / shape.tp,
        mamba.groups * mamba.state / shape.tp,
        mamba.inner / shape.tp * mamba.state / CHUNK,
        mamba.groups / shape.tp * CHUNK,
    )
    scanned = [
        tokens
        * given(
            "bytes of convolution and scan for each token",
            sum(width * each for width, each in zip(widths, kind, strict=True)),
            "B",
            "kernels of mamba_ssm, tensor by tensor",
        )
        for kind in _passes(base.operand_bytes)
    ]
    scan = MemoryTraffic(
        scanned[0].called("scan bytes, forward", "B"),
        scanned[1].called("scan bytes, backward", "B"),
        kernels=SCAN_KERNELS,
        kind="scan",
    )
    return [around, scan]


def mamba_kept(
    shape: ModelShape, mamba: Mamba, layout: Layout, base: Precision, low: Precision
) -> Figure:
    """Bytes that a block keeps for its backward: its projected input, the scan's output, and the
    output projection's input. States and convolution are made again
    (mamba_split_conv1d_scan_combined of mamba_ssm)."""
    inner = given("inner width per rank", mamba.inner / shape.tp, "", _WIDTH)
    projected = given("projected width per rank", mamba.projected / shape.tp, "", _PROJECTED)
    size, small = base.operand_bytes, low.operand_bytes
    return layout.tokens * projected * literal(size, "B") + layout.tokens * inner * literal(
        size + small, "B"
    )


def mamba_context(
    shape: ModelShape, mamba: Mamba, layout: Layout, base: Precision
) -> list[Collective]:
    """Context parallelism of a block: ranks exchange their parts of the sequence for parts of the
    heads, and back (Megatron-Core's MambaContextParallel)."""
    if layout.cp == 1:
        return []
    size = literal(base.operand_bytes, "B")
    inner = given("inner width per rank", mamba.inner / shape.tp, "", _WIDTH)
    projected = given("projected width per rank", mamba.projected / shape.tp, "", _PROJECTED)
    one = partial(Collective, dimension="CP", kind="all-to-all", ranks=layout.cp, stride=layout.tp)
    sent = {
        "Mamba input": (layout.tokens * projected * size).called("projected input", "B"),
        "Mamba output": (layout.tokens * inner * size).called("scanned output", "B"),
    }
    return [
        one(name=name, payload=payload, phase=phase)
        for phase in PHASES
        for name, payload in sent.items()
    ]


_WIDTH = "model.mamba_num_heads x model.mamba_head_dim / TP"
_PROJECTED = "2 x inner + 2 x groups x state + heads, / TP"
