"""The kinds of layers that a model has, and what a rank does in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron.bridge.models.layer_blocks import (
    ATTENTION,
    DENSE_LAYER,
    EXPERTS,
    MAMBA,
    MLP,
    MOE_LAYER,
)
from megatron.bridge.models.model_shape import Experts, ModelShape
from overlapkit.plan.figure import Figure, given, total
from overlapkit.plan.workload.attention import Attention, attention_of, window_of
from overlapkit.plan.workload.collectives import (
    Collective,
    context_collectives,
    context_kind,
    expert_collectives,
    routed_copies,
    tensor_collectives,
    vocabulary_collectives,
)
from overlapkit.plan.workload.gemms import (
    Gemm,
    attention_gemms,
    expert_gemms,
    latent_gemms,
    mlp_gemms,
    router_gemms,
    vocabulary_gemms,
)
from overlapkit.plan.workload.host import NO_LAUNCHES, Launches, launches_of
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.mamba import mamba_context, mamba_gemms, mamba_traffic, scan_flops
from overlapkit.plan.workload.memory_traffic import (
    MemoryTraffic,
    MlpRows,
    attention_traffic,
    expert_bias_traffic,
    expert_input,
    expert_traffic,
    loss_traffic,
    mlp_traffic,
    ring_traffic,
    shared_tokens,
)
from overlapkit.plan.workload.precision import (
    Precision,
    base_precision,
    layer_precisions,
    linear_precision,
)
from overlapkit.plan.workload.prediction import (
    NAME,
    joining_collectives,
    joining_gemms,
    joining_traffic,
)
from overlapkit.plan.workload.recompute import Recompute, recompute_of

_NAMES = {
    DENSE_LAYER: "dense",
    MOE_LAYER: "moe",
    MAMBA: "Mamba",
    ATTENTION: "attention",
    MLP: "feed-forward",
    EXPERTS: "experts",
}
"""Of kinds of layers, by their blocks."""


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """What one rank does in one layer of a kind for one microbatch.

    Attributes:
        name: of the kind, such as "dense", "moe", "Mamba" or "vocabulary", with the precision
            where a model has several.
        blocks: of the layer; empty for what is no layer.
        gemms: of the forward and the backward.
        attention: None where there is none.
        traffic: of the memory-bound kernels, block by block.
        collectives: TP, CP and EP communication.
        recompute: what the backward repeats.
        precision: of its linear layers.
        launches: kernels that the GPU waits for the host to start.
        scan: model FLOPs of Mamba's scan; None where there is none.
    """

    name: str
    blocks: str
    gemms: tuple[Gemm, ...]
    attention: Attention | None
    traffic: tuple[MemoryTraffic, ...]
    collectives: tuple[Collective, ...]
    recompute: Recompute
    precision: Precision
    launches: Launches = NO_LAUNCHES
    scan: Figure | None = None

    @property
    def moe(self) -> bool:
        """Whether it has experts."""
        return EXPERTS in self.blocks


def layer_flops(work: LayerWork) -> Figure:
    """Model FLOPs of one layer on a rank for a microbatch, forward and backward."""
    terms = [gemm.flops for gemm in work.gemms]
    if work.attention:
        terms.append(work.attention.counted)
    if work.scan:
        terms.append(work.scan)
    return total(terms).called(f"{work.name} layer model FLOPs", "FLOP")


class Kinds(NamedTuple):
    """The kinds of layers that a model has.

    Attributes:
        works: one for each kind.
        of_layers: the kind of each layer, as a position in `works`.
        of_prediction: the kinds that one depth of multi-token prediction has, likewise.
    """

    works: tuple[LayerWork, ...]
    of_layers: tuple[int, ...]
    of_prediction: tuple[int, ...]


def kinds_of_layers(model: Any, shape: ModelShape, layout: Layout) -> Kinds:
    """The kinds of layers that occur.

    Raises:
        InputError: a setting of the attention or of recomputation that is not known.
    """
    kinds: dict[Any, int] = {}
    works: list[LayerWork] = []
    of_layers = []
    precisions = layer_precisions(model, len(shape.blocks))
    # Only windows make attention differ between layers, and a sweep makes thousands of workloads.
    attentions: dict[int | None, Attention] = {}
    for number, (blocks, low) in enumerate(zip(shape.blocks, precisions, strict=True)):
        window = window_of(model, number)
        attention = attentions.get(window) or attention_of(model, shape, layout, number)
        attentions[window] = attention
        key = blocks, low.name, attention.forward.value if ATTENTION in blocks else 0
        if key not in kinds:
            kinds[key] = len(works)
            works.append(_layer(model, shape, layout, low, attention, blocks, number))
        of_layers.append(kinds[key])
    predicting = _prediction(model, shape, layout, attention)
    first = len(works)
    of_prediction = tuple(range(first, first + len(predicting)))
    return Kinds((*works, *predicting), tuple(of_layers), of_prediction)


def _prediction(
    model: Any, shape: ModelShape, layout: Layout, attention: Attention
) -> list[LayerWork]:
    """What one depth of multi-token prediction does, but for its output layer."""
    if shape.prediction is None:
        return []
    base, last = base_precision(model), len(shape.blocks) - 1
    bf16 = bool(getattr(model, "keep_mtp_spec_in_bf16", False))
    low = base if bf16 else linear_precision(model)
    joining = LayerWork(
        name=f"{NAME} input",
        blocks="",
        gemms=tuple(joining_gemms(shape, int(layout.tokens.value), low)),
        attention=None,
        traffic=(joining_traffic(shape, layout, base, low),),
        collectives=tuple(joining_collectives(shape, layout, base)),
        recompute=Recompute(),
        precision=low,
    )
    layers = [
        _layer(model, shape, layout, low, attention, blocks, last, name=f"{NAME} ")
        for blocks in shape.prediction.blocks
    ]
    return [joining, *layers]


class _Block(NamedTuple):
    """What a rank does in one block of a layer."""

    gemms: list[Gemm]
    traffic: list[MemoryTraffic]
    collectives: list[Collective]


def _layer(
    model: Any,
    shape: ModelShape,
    layout: Layout,
    low: Precision,
    attention: Attention,
    blocks: str,
    layer: int,
    *,
    name: str = "",
) -> LayerWork:
    base = base_precision(model)
    found: list[_Block] = []
    launches = NO_LAUNCHES
    scan = None
    for block in blocks:
        if block == ATTENTION:
            found.append(_attention(model, shape, layout, base, low, layer))
        elif block == MAMBA and shape.mamba:
            tokens = int(layout.tokens.value)
            gemms = mamba_gemms(shape, shape.mamba, tokens, low)
            traffic = mamba_traffic(shape, shape.mamba, layout, base, low)
            found.append(_Block(gemms, traffic, mamba_context(shape, shape.mamba, layout, base)))
            scan = scan_flops(shape, shape.mamba, layout)
        elif block == EXPERTS and shape.experts:
            found.append(_experts(model, shape, shape.experts, layout, low))
            launches = launches_of(model, shape.experts, layout, blocks, bias=shape.linear_bias)
        else:
            found.append(_feed_forward(shape, layout, base, low))
    kind = name + _NAMES[blocks]
    return LayerWork(
        name=kind if low is linear_precision(model) else f"{kind} {low.name}",
        blocks=blocks,
        gemms=tuple(gemm for block in found for gemm in block.gemms),
        attention=attention if ATTENTION in blocks else None,
        traffic=tuple(each for block in found for each in block.traffic),
        collectives=(
            *tensor_collectives(shape, layout, base, low, blocks),
            *(each for block in found for each in block.collectives),
        ),
        recompute=recompute_of(model, layout, blocks),
        precision=low,
        launches=launches,
        scan=scan,
    )


def _attention(
    model: Any, shape: ModelShape, layout: Layout, base: Precision, low: Precision, layer: int
) -> _Block:
    return _Block(
        attention_gemms(shape, int(layout.tokens.value), low),
        [
            attention_traffic(shape, layout, base, low),
            *ring_traffic(shape, layout, base, context_kind(model, layer)),
        ],
        context_collectives(model, shape, layout, base, layer),
    )


def _feed_forward(shape: ModelShape, layout: Layout, base: Precision, low: Precision) -> _Block:
    gemms = mlp_gemms(shape, shape.ffn, int(layout.tokens.value), low)
    passing = MlpRows(
        width=shape.ffn / layout.tp, rows=layout.tokens, entering=shared_tokens(layout)
    )
    return _Block(gemms, [mlp_traffic(shape, layout, base, low, passing)], [])


def _experts(
    model: Any, shape: ModelShape, experts: Experts, layout: Layout, low: Precision
) -> _Block:
    base = base_precision(model)
    shared = int(shared_tokens(layout).value)
    arriving = shared * routed_copies(model) * layout.expert_tp
    routed = given("token copies at a rank's experts", arriving, "tokens", "spread evenly")
    gemms = router_gemms(shape, experts, shared, base)
    gemms += latent_gemms(shape, experts, shared, low)
    gemms += expert_gemms(shape, experts, arriving, low)
    if experts.shared_ffn:
        tokens = int(layout.tokens.value)
        gemms += mlp_gemms(shape, experts.shared_ffn, tokens, low, prefix="shared ")
    passing = MlpRows(
        width=experts.ffn / layout.expert_tp,
        rows=routed,
        entering=routed,
        inputs=expert_input(shape),
    )
    own = experts.count // layout.ep
    dispatcher = getattr(model, "moe_token_dispatcher_type", "alltoall")
    sorted_again = dispatcher == "alltoall" and layout.ep * layout.expert_tp > 1 and own > 1
    traffic = [
        mlp_traffic(shape, layout, base, low, passing),
        expert_traffic(shape, routed, base, sorted_again=sorted_again),
    ]
    if shape.linear_bias:
        traffic.append(expert_bias_traffic(shape, routed, base))
    return _Block(gemms, traffic, expert_collectives(model, shape, experts, layout, base))


def vocabulary_work(shape: ModelShape, layout: Layout, base: Precision) -> LayerWork:
    """The output layer and the loss."""
    return LayerWork(
        name="vocabulary",
        blocks="",
        gemms=tuple(vocabulary_gemms(shape, int(layout.tokens.value), base)),
        attention=None,
        traffic=(loss_traffic(shape, layout),),
        collectives=tuple(vocabulary_collectives(shape, layout, base)),
        recompute=Recompute(),
        precision=base,
    )
