"""What each GPU does in a step of a run: arithmetic, memory traffic and communication.

Nothing here depends on the GPU or the network; `overlapkit.plan.estimate.step_time` combines
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.bridge.models.layer_blocks import UncountableModel
from megatron.bridge.models.model_shape import ModelShape, read_shape
from megatron.bridge.models.pipeline_layout import ModelPart
from overlapkit.config.run import Run
from overlapkit.errors import InputError
from overlapkit.plan.figure import Figure, given, literal, total
from overlapkit.plan.workload.collectives import Collective, routed_copies
from overlapkit.plan.workload.gradient_exchange import GradientExchange, gradient_exchange
from overlapkit.plan.workload.layers import (
    Kinds,
    LayerWork,
    kinds_of_layers,
    layer_flops,
    vocabulary_work,
)
from overlapkit.plan.workload.layout import Layout, layout_of
from overlapkit.plan.workload.memory_traffic import shared_tokens
from overlapkit.plan.workload.offload import Offload, offload_of
from overlapkit.plan.workload.parameters import COUNTED, StageParameters, stage_parameters
from overlapkit.plan.workload.precision import Precision, base_precision, linear_precision


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
        heads: how often a microbatch passes through them: once, and for each depth of multi-token
            prediction.
        parameters: of each stage.
        exchange: the data-parallel communication of gradients and parameters.
        boundary: what a pipeline stage sends to the next for a microbatch; None without pipeline.
        shape: the model's sizes.
        copies: experts that each token goes to.
        offload: what is kept in the host's memory.
    """

    layout: Layout
    precision: Precision
    base: Precision
    layers: tuple[LayerWork, ...]
    stages: tuple[Counter[int], ...]
    vocabulary: LayerWork
    heads: int
    parameters: tuple[StageParameters, ...]
    exchange: GradientExchange
    boundary: Collective | None
    shape: ModelShape
    copies: int
    offload: Offload

    @property
    def worst_stage(self) -> int:
        """The pipeline stage with the most parameters."""
        return max(range(self.layout.pp), key=lambda stage: self.parameters[stage].all.all)

    @property
    def rank_parameters(self) -> Figure:
        """Parameters on a rank of the stage with the most."""
        count = self.parameters[self.worst_stage].all.all
        return given("parameters per rank", count, "", COUNTED)

    def of_all_heads(self, of_one: Figure) -> Figure:
        """What all output layers take where one takes `of_one`."""
        if self.heads == 1:
            return of_one
        return given("output layers", self.heads, "", "1 + model.mtp_num_layers") * of_one

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
        of_pass = (total(terms) + self.of_all_heads(layer_flops(self.vocabulary))).called(
            "model FLOPs of a microbatch on a TP and CP rank", "FLOP"
        )
        layout = self.layout
        ranks = given("TP x CP x DP", layout.tp * layout.cp * layout.dp, "ranks", "layout")
        passes = given("microbatches", layout.microbatches, "", "global batch / (micro-batch x DP)")
        return (of_pass * ranks * passes).called("model FLOPs of a step", "FLOP")


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
        shape = read_shape(model, ordered=False)
        parameters = tuple(stage_parameters(shape, layout))
    except UncountableModel as error:
        raise InputError(f"the model cannot be planned: {error}") from None
    for what, size in (("num_attention_heads", shape.heads), ("ffn_hidden_size", shape.ffn)):
        if size % layout.tp:
            raise InputError(
                f"model.{what}={size} is not divisible by "
                f"model.tensor_model_parallel_size={layout.tp}; choose a TP that divides it"
            )
    kinds = kinds_of_layers(model, shape, layout)
    depths = shape.prediction.depths if shape.prediction else 0
    stages = tuple(
        _of_stage(kinds, [row[stage] for row in layout.parts], depths) for stage in range(layout.pp)
    )
    base = base_precision(model)
    return Workload(
        layout=layout,
        precision=linear_precision(model),
        base=base,
        layers=kinds.works,
        stages=stages,
        vocabulary=vocabulary_work(shape, layout, base),
        heads=1 + depths,
        parameters=parameters,
        exchange=gradient_exchange(run, layout, parameters, cut=cut),
        boundary=_boundary(shape, layout, base),
        shape=shape,
        copies=routed_copies(model),
        offload=offload_of(run),
    )


def _of_stage(kinds: Kinds, parts: Sequence[ModelPart], depths: int) -> Counter[int]:
    """How many layers of each kind the chunks of a stage have."""
    counts = Counter(kinds.of_layers[n] for part in parts for n in part.layers)
    if any(part.predicts for part in parts):
        counts.update({kind: depths * n for kind, n in Counter(kinds.of_prediction).items()})
    return counts


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
