"""What a run asks of each GPU in a step: arithmetic, memory traffic and communication.

Nothing here depends on the GPU or the network; `overlapkit.plan.estimate.step_time` combines
them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.model_shape import ModelShape, UncountableModel, read_shape
from overlapkit.config.run import Run
from overlapkit.errors import InputError
from overlapkit.plan.figure import Figure, given, literal, total
from overlapkit.plan.workload.attention import Attention, attention_of
from overlapkit.plan.workload.collectives import (
    Collective,
    context_collectives,
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
from overlapkit.plan.workload.layout import Layout, layout_of
from overlapkit.plan.workload.memory_traffic import (
    Traffic,
    attention_traffic,
    expert_traffic,
    loss_traffic,
    mlp_traffic,
    shared_tokens,
)
from overlapkit.plan.workload.parameters import StageParameters, stage_parameters
from overlapkit.plan.workload.precision import (
    Precision,
    base_precision,
    layer_precisions,
    linear_precision,
)
from overlapkit.plan.workload.recompute import Recompute, recompute_of


@dataclass(frozen=True)
class LayerWork:
    """What one layer of a kind asks of one rank for one microbatch.

    Attributes:
        name: "dense", "moe" or "vocabulary", with the precision where a model has several.
        gemms: of the forward and the backward.
        attention: None for the vocabulary.
        traffic: of the memory-bound kernels, block by block.
        collectives: TP, CP and EP communication.
        recompute: what the backward does again.
        moe: whether it has experts.
        precision: of its linear layers.
    """

    name: str
    gemms: tuple[Gemm, ...]
    attention: Attention | None
    traffic: tuple[Traffic, ...]
    collectives: tuple[Collective, ...]
    recompute: Recompute
    moe: bool
    precision: Precision


@dataclass(frozen=True)
class Workload:
    """A run's step, by pipeline stage.

    Attributes:
        layout: ranks and batch.
        precision: of the linear layers.
        base: of everything else.
        layers: the kinds of layers that occur.
        stages: of each stage how many layers of each kind (positions in `layers`) it holds.
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
        """The pipeline stage with most parameters."""
        return max(range(self.layout.pp), key=lambda stage: self.parameters[stage].all.all)

    @property
    def rank_parameters(self) -> Figure:
        """Parameters on a rank of the stage with most."""
        held = self.parameters[self.worst_stage].all.all
        return given("parameters per rank", held, "", "counted tensor by tensor")

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
        InputError: a size is missing, does not divide, or the architecture is not known; names it
            and the remedy.
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
                f"model.{what}={size} cannot be divided over "
                f"model.tensor_model_parallel_size={layout.tp}; choose a TP that divides it"
            )
    kinds: dict[Any, int] = {}
    layers: list[LayerWork] = []
    of_layer = []
    precisions = layer_precisions(model, len(shape.moe_layers))
    # Only windows make attention differ between layers; a sweep makes thousands of workloads.
    alike = getattr(model, "window_size", None) is None
    attention = attention_of(model, shape, layout, 0)
    for number, (moe, low) in enumerate(zip(shape.moe_layers, precisions, strict=True)):
        if not alike:
            attention = attention_of(model, shape, layout, number)
        key = moe, low.name, attention.forward.value
        if key not in kinds:
            kinds[key] = len(layers)
            layers.append(_layer(model, shape, layout, low, attention, moe=moe, layer=number))
        of_layer.append(kinds[key])
    stages = tuple(
        Counter(of_layer[n] for row in layout.chunk_layers for n in row[stage])
        for stage in range(layout.pp)
    )
    base = base_precision(model)
    return Workload(
        layout=layout,
        precision=linear_precision(model),
        base=base,
        layers=tuple(layers),
        stages=stages,
        vocabulary=_vocabulary(shape, layout, base),
        parameters=parameters,
        exchange=gradient_exchange(run, layout, parameters, cut=cut),
        boundary=_boundary(shape, layout, base),
        shape=shape,
        copies=routed_copies(model),
    )


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
    tokens = int(layout.tokens.value)
    gemms = attention_gemms(shape, tokens, low)
    traffic = [attention_traffic(shape, layout, base, low)]
    collectives = tensor_collectives(shape, layout, base, low, mlp=not moe)
    collectives += context_collectives(model, shape, layout, base, layer)
    if moe and shape.experts:
        experts = shape.experts
        shared = int(shared_tokens(layout).value)
        arriving = shared * routed_copies(model) * layout.expert_tp
        routed = given("token copies at a rank's experts", arriving, "tokens", "spread evenly")
        gemms += router_gemms(shape, experts, shared, base)
        gemms += expert_gemms(shape, experts, arriving, low)
        width = experts.ffn / layout.expert_tp
        traffic.append(mlp_traffic(shape, layout, base, low, width, routed, routed))
        traffic.append(expert_traffic(shape, routed, base))
        if experts.shared_ffn:
            gemms += mlp_gemms("shared ", shape, experts.shared_ffn, tokens, layout.tp, low)
        collectives += expert_collectives(model, shape, experts, layout, base)
    else:
        gemms += mlp_gemms("", shape, shape.ffn, tokens, layout.tp, low)
        width = shape.ffn / layout.tp
        entering = shared_tokens(layout)
        traffic.append(mlp_traffic(shape, layout, base, low, width, layout.tokens, entering))
    kind = "moe" if moe else "dense"
    return LayerWork(
        kind if low is linear_precision(model) else f"{kind} {low.name}",
        tuple(gemms),
        attention,
        tuple(traffic),
        tuple(collectives),
        recompute_of(model, layout, moe=moe),
        moe,
        low,
    )


def _vocabulary(shape: ModelShape, layout: Layout, base: Precision) -> LayerWork:
    return LayerWork(
        "vocabulary",
        tuple(vocabulary_gemms(shape, int(layout.tokens.value), base)),
        None,
        (loss_traffic(shape, layout),),
        tuple(vocabulary_collectives(shape, layout, base)),
        Recompute(),
        False,
        base,
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
    return Collective("PP", "boundary", "send", sent, layout.pp, stride, "step", count)
