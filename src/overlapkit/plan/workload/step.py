"""What each GPU does in a step of a run: arithmetic, memory traffic and communication.

Nothing here depends on the GPU or the network; `overlapkit.plan.estimate.step_time` combines
them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron.bridge.models.model_shape import Experts, ModelShape, UncountableModel, read_shape
from overlapkit.config.run import Run
from overlapkit.errors import InputError
from overlapkit.plan.figure import Figure, given, literal, total
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
    mlp_gemms,
    router_gemms,
    vocabulary_gemms,
)
from overlapkit.plan.workload.gradient_exchange import GradientExchange, gradient_exchange
from overlapkit.plan.workload.host import NO_LAUNCHES, Launches, launches_of
from overlapkit.plan.workload.layout import Layout, layout_of
from overlapkit.plan.workload.memory_traffic import (
    MemoryTraffic,
    MlpRows,
    attention_traffic,
    expert_bias_traffic,
    expert_traffic,
    loss_traffic,
    mlp_traffic,
    ring_traffic,
    shared_tokens,
)
from overlapkit.plan.workload.parameters import COUNTED, StageParameters, stage_parameters
from overlapkit.plan.workload.precision import (
    Precision,
    base_precision,
    layer_precisions,
    linear_precision,
)
from overlapkit.plan.workload.recompute import Recompute, recompute_of


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """What one rank does in one layer of a kind for one microbatch.

    Attributes:
        name: "dense", "moe" or "vocabulary", with the precision where a model has several.
        gemms: of the forward and the backward.
        attention: None for the vocabulary.
        traffic: of the memory-bound kernels, block by block.
        collectives: TP, CP and EP communication.
        recompute: what the backward repeats.
        moe: whether it has experts.
        precision: of its linear layers.
        launches: kernels that the GPU waits for the host to start.
    """

    name: str
    gemms: tuple[Gemm, ...]
    attention: Attention | None
    traffic: tuple[MemoryTraffic, ...]
    collectives: tuple[Collective, ...]
    recompute: Recompute
    moe: bool
    precision: Precision
    launches: Launches = NO_LAUNCHES


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A run's step, by pipeline stage.

    Attributes:
        layout: ranks and batch.
        precision: of the linear layers.
        base: of everything else.
        layers: the kinds of layers that occur.
        stages: for each stage, how many layers of each kind it has (positions in `layers`).
        vocabulary: the output layer and the loss, on the last stage.
        parameters: of each stage.
        exchange: the data-parallel communication of gradients and parameters.
        boundary: what a pipeline stage sends to the next for a microbatch; None without pipeline.
        shape: the model's sizes.
        copies: experts that each token goes to.
    """

    layout: Layout
    precision: Precision
    base: Precision
    layers: tuple[LayerWork, ...]
    stages: tuple[Counter[int], ...]
    vocabulary: LayerWork
    parameters: tuple[StageParameters, ...]
    exchange: GradientExchange
    boundary: Collective | None
    shape: ModelShape
    copies: int

    @property
    def worst_stage(self) -> int:
        """The pipeline stage with the most parameters."""
        return max(range(self.layout.pp), key=lambda stage: self.parameters[stage].all.all)

    @property
    def rank_parameters(self) -> Figure:
        """Parameters on a rank of the stage with the most."""
        count = self.parameters[self.worst_stage].all.all
        return given("parameters per rank", count, "", COUNTED)

    @property
    def model_flops(self) -> Figure:
        """Model FLOPs of a step over all ranks: no recomputation, attention causal."""
        counts: Counter[int] = Counter()
        for stage in self.stages:
            counts.update(stage)
        terms = [
            given(f"{self.layers[kind].name} layers", number, "", "model.num_layers")
            * layer_flops(self.layers[kind])
            for kind, number in sorted(counts.items())
        ]
        of_pass = (total(terms) + layer_flops(self.vocabulary)).called(
            "model FLOPs of a microbatch on a TP and CP rank", "FLOP"
        )
        layout = self.layout
        ranks = given("TP x CP x DP", layout.tp * layout.cp * layout.dp, "ranks", "layout")
        passes = given("microbatches", layout.microbatches, "", "global batch / (micro-batch x DP)")
        return (of_pass * ranks * passes).called("model FLOPs of a step", "FLOP")


def layer_flops(work: LayerWork) -> Figure:
    """Model FLOPs of one layer on a rank for a microbatch, forward and backward."""
    terms = [gemm.flops for gemm in work.gemms]
    if work.attention:
        terms.append(work.attention.counted)
    return total(terms).called(f"{work.name} layer model FLOPs", "FLOP")


def workload(run: Run, world_size: int, *, cut: bool = True) -> Workload:
    """The work of a run's step.

    Args:
        run: with its configurations effective (`update_runtime` was applied to it).
        world_size: GPUs of the job.
        cut: whether to cut the gradients into buckets (`gradient_exchange`).

    Raises:
        InputError: a size is missing, does not divide, or the architecture is not known. The
            message names it and the remedy.
    """
    layout = layout_of(run, world_size)
    model = run.model
    try:
        shape = read_shape(model)
        parameters = tuple(stage_parameters(model, shape, layout))
    except UncountableModel as error:
        raise InputError(f"the model cannot be planned: {error}") from None
    for what, size in (("num_attention_heads", shape.heads), ("ffn_hidden_size", shape.ffn)):
        if size % layout.tp:
            raise InputError(
                f"model.{what}={size} is not divisible by "
                f"model.tensor_model_parallel_size={layout.tp}; choose a TP that divides it"
            )
    layers, kind_of_layer = _kinds_of_layers(model, shape, layout)
    stages = tuple(
        Counter(kind_of_layer[n] for row in layout.chunk_layers for n in row[stage])
        for stage in range(layout.pp)
    )
    base = base_precision(model)
    return Workload(
        layout=layout,
        precision=linear_precision(model),
        base=base,
        layers=layers,
        stages=stages,
        vocabulary=_vocabulary(shape, layout, base),
        parameters=parameters,
        exchange=gradient_exchange(run, layout, parameters, cut=cut),
        boundary=_boundary(shape, layout, base),
        shape=shape,
        copies=routed_copies(model),
    )


def _kinds_of_layers(
    model: Any, shape: ModelShape, layout: Layout
) -> tuple[tuple[LayerWork, ...], list[int]]:
    """The kinds of layers that occur, and the kind of each layer as a position among them."""
    kinds: dict[Any, int] = {}
    layers: list[LayerWork] = []
    kind_of_layer = []
    precisions = layer_precisions(model, len(shape.moe_layers))
    # Only windows make attention differ between layers, and a sweep makes thousands of workloads.
    attentions: dict[int | None, Attention] = {}
    for number, (moe, low) in enumerate(zip(shape.moe_layers, precisions, strict=True)):
        window = window_of(model, number)
        attention = attentions.get(window) or attention_of(model, shape, layout, number)
        attentions[window] = attention
        key = moe, low.name, attention.forward.value
        if key not in kinds:
            kinds[key] = len(layers)
            layers.append(_layer(model, shape, layout, low, attention, moe=moe, layer=number))
        kind_of_layer.append(kinds[key])
    return tuple(layers), kind_of_layer


def _layer(
    model: Any,
    shape: ModelShape,
    layout: Layout,
    low: Precision,
    attention: Attention,
    *,
    moe: bool,
    layer: int,
) -> LayerWork:
    base = base_precision(model)
    launches = NO_LAUNCHES
    collectives = tensor_collectives(shape, layout, base, low, mlp=not moe)
    collectives += context_collectives(model, shape, layout, base, layer)
    if moe and shape.experts:
        block = _experts(model, shape, shape.experts, layout, low)
        launches = launches_of(model, shape.experts, layout, bias=shape.linear_bias)
    else:
        block = _feed_forward(shape, layout, base, low)
    kind = "moe" if moe else "dense"
    tokens = int(layout.tokens.value)
    return LayerWork(
        name=kind if low is linear_precision(model) else f"{kind} {low.name}",
        gemms=(*attention_gemms(shape, tokens, low), *block.gemms),
        attention=attention,
        traffic=(
            attention_traffic(shape, layout, base, low),
            *ring_traffic(shape, layout, base, context_kind(model, layer)),
            *block.traffic,
        ),
        collectives=(*collectives, *block.collectives),
        recompute=recompute_of(model, layout, moe=moe),
        moe=moe,
        precision=low,
        launches=launches,
    )


class _Block(NamedTuple):
    """The part of a layer after attention."""

    gemms: list[Gemm]
    traffic: list[MemoryTraffic]
    collectives: list[Collective]


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
    gemms += expert_gemms(shape, experts, arriving, low)
    if experts.shared_ffn:
        tokens = int(layout.tokens.value)
        gemms += mlp_gemms(shape, experts.shared_ffn, tokens, low, prefix="shared ")
    passing = MlpRows(width=experts.ffn / layout.expert_tp, rows=routed, entering=routed)
    traffic = [
        mlp_traffic(shape, layout, base, low, passing),
        expert_traffic(shape, routed, base),
    ]
    if shape.linear_bias:
        traffic.append(expert_bias_traffic(shape, routed, base))
    return _Block(gemms, traffic, expert_collectives(model, shape, experts, layout, base))


def _vocabulary(shape: ModelShape, layout: Layout, base: Precision) -> LayerWork:
    return LayerWork(
        name="vocabulary",
        gemms=tuple(vocabulary_gemms(shape, int(layout.tokens.value), base)),
        attention=None,
        traffic=(loss_traffic(shape, layout),),
        collectives=tuple(vocabulary_collectives(shape, layout, base)),
        recompute=Recompute(),
        moe=False,
        precision=base,
    )


def _boundary(shape: ModelShape, layout: Layout, base: Precision) -> Collective | None:
    if layout.pp == 1:
        return None
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    sent = (shared_tokens(layout) * hidden * literal(base.operand_bytes, "B")).called(
        "boundary activation", "B"
    )
    stride = layout.tp * layout.cp * layout.dp
    count = layout.microbatches * layout.vp * 2
    return Collective(
        dimension="PP",
        name="boundary",
        kind="send",
        payload=sent,
        ranks=layout.pp,
        stride=stride,
        phase="step",
        count=count,
    )
