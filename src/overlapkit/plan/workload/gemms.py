"""The matrix multiplications of a transformer layer on one rank, by shape.

Each weight takes part in three: forward (fprop), gradient of the input (dgrad) and gradient of the
weight (wgrad), each of 2 x tokens x inputs x outputs operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from megatron.bridge.models.model_shape import Experts, LatentAttention, ModelShape
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.precision import Precision

PASSES = ("fprop", "dgrad", "wgrad")


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """`batch` products of an ``m x k`` and a ``k x n`` matrix.

    Attributes:
        name: of the linear layer, as Transformer Engine's userbuffers call it: qkv, proj, fc1 or
            fc2; or of the router, of experts, of the shared expert, or of the vocabulary.
        which: "fprop", "dgrad" or "wgrad".
        precision: of the operands.
    """

    name: str
    which: str
    m: int
    n: int
    k: int
    batch: int
    precision: Precision

    @property
    def forward(self) -> bool:
        return self.which == "fprop"

    @property
    def flops(self) -> Figure:
        """Multiplications and additions."""
        m, n, k = self._axes
        product = literal(2, "FLOP") * m * n * k
        if self.batch > 1:
            product = product * self._batch
        return product.called(f"{self.name} {self.which} FLOPs", "FLOP")

    @property
    def moved(self) -> Figure:
        """Bytes between memory and chip: each operand read once, the result written once.

        A weight gradient is added to the fp32 gradient buffer, which is read and written.
        """
        m, n, k = self._axes
        size = self.precision.operand_bytes
        result = 8 if self.which == "wgrad" else max(2.0, min(size, 4.0))
        moved = (m * k + k * n) * literal(size, "B") + m * n * literal(result, "B")
        if self.batch > 1:
            moved = moved * self._batch
        return moved.called(f"{self.name} {self.which} bytes", "B")

    @property
    def _axes(self) -> tuple[Figure, Figure, Figure]:
        meanings = _AXES[self.which]
        m, n, k = (
            given(f"{self.name} {meaning}", size, "", "sizes of the layer on a rank")
            for meaning, size in zip(meanings, (self.m, self.n, self.k), strict=True)
        )
        return m, n, k

    @property
    def _batch(self) -> Figure:
        return given("experts of a rank", self.batch, "", "model.num_moe_experts / EP")


_AXES = {
    "fprop": ("tokens", "outputs", "inputs"),
    "dgrad": ("tokens", "inputs", "outputs"),
    "wgrad": ("outputs", "inputs", "tokens"),
}


def linear(
    name: str, tokens: int, inputs: int, outputs: int, precision: Precision, *, batch: int = 1
) -> list[Gemm]:
    """The three products of a linear layer whose weight is ``outputs x inputs``."""
    one = partial(Gemm, name=name, batch=batch, precision=precision)
    return [
        one(which="fprop", m=tokens, n=outputs, k=inputs),
        one(which="dgrad", m=tokens, n=inputs, k=outputs),
        one(which="wgrad", m=outputs, n=inputs, k=tokens),
    ]


def attention_gemms(shape: ModelShape, tokens: int, precision: Precision) -> list[Gemm]:
    """The projections into and out of attention."""
    if shape.latent:
        return _latent(shape, shape.latent, tokens, precision)
    queries = shape.heads * shape.head_dim
    width = queries * (2 if shape.output_gate else 1) + 2 * shape.query_groups * shape.head_dim
    return [
        *linear("qkv", tokens, shape.hidden, width // shape.tp, precision),
        *linear("proj", tokens, queries // shape.tp, shape.hidden, precision),
    ]


def _latent(
    shape: ModelShape, latent: LatentAttention, tokens: int, precision: Precision
) -> list[Gemm]:
    heads = shape.heads // shape.tp
    q_width = heads * (latent.qk_head_dim + latent.qk_position_dim)
    kv_width = heads * (latent.qk_head_dim + latent.v_head_dim)
    # Every rank has the entire down projections. With sequence parallelism each works on its share
    # of the tokens, else on all of them: their cost is small either way.
    gemms = []
    if latent.q_rank is None:
        gemms += linear("q", tokens, shape.hidden, q_width, precision)
    else:
        gemms += linear("q down", tokens // shape.tp, shape.hidden, latent.q_rank, precision)
        gemms += linear("q up", tokens, latent.q_rank, q_width, precision)
    down = latent.kv_rank + latent.qk_position_dim
    gemms += linear("kv down", tokens // shape.tp, shape.hidden, down, precision)
    gemms += linear("kv up", tokens, latent.kv_rank, kv_width, precision)
    return gemms + linear("proj", tokens, heads * latent.v_head_dim, shape.hidden, precision)


def mlp_gemms(
    shape: ModelShape, ffn: int, tokens: int, precision: Precision, *, prefix: str = ""
) -> list[Gemm]:
    """A feed-forward block of width `ffn`, divided over TP.

    Args:
        prefix: of the names of its linear layers.
    """
    width = ffn * (2 if shape.gated else 1) // shape.tp
    return [
        *linear(f"{prefix}fc1", tokens, shape.hidden, width, precision),
        *linear(f"{prefix}fc2", tokens, ffn // shape.tp, shape.hidden, precision),
    ]


def expert_gemms(
    shape: ModelShape, experts: Experts, routed: int, precision: Precision
) -> list[Gemm]:
    """The experts on one rank. Tokens are assumed to be spread evenly over them.

    Args:
        routed: token copies that arrive at this rank, over all its experts.
    """
    count = experts.count // shape.ep
    each = max(routed // count, 1)
    width = experts.ffn * (2 if shape.gated else 1) // shape.expert_tp
    ffn = experts.ffn // shape.expert_tp
    hidden = experts.latent or shape.hidden
    return [
        *linear("experts fc1", each, hidden, width, precision, batch=count),
        *linear("experts fc2", each, ffn, hidden, precision, batch=count),
    ]


def latent_gemms(
    shape: ModelShape, experts: Experts, tokens: int, precision: Precision
) -> list[Gemm]:
    """The projections of tokens to the width that experts work on, and back (LatentMoE)."""
    if not experts.latent:
        return []
    return [
        *linear("latent down", tokens, shape.hidden, experts.latent, precision),
        *linear("latent up", tokens, experts.latent, shape.hidden, precision),
    ]


def router_gemms(shape: ModelShape, experts: Experts, tokens: int, base: Precision) -> list[Gemm]:
    """The router, which no recipe quantizes."""
    return linear("router", tokens, shape.hidden, experts.count, base)


def vocabulary_gemms(shape: ModelShape, tokens: int, base: Precision) -> list[Gemm]:
    """The output layer, which no recipe quantizes."""
    return linear("vocabulary", tokens, shape.hidden, shape.vocab // shape.tp, base)
