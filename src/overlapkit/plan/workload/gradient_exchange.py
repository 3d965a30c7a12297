"""The data-parallel exchange of a step: gradients reduced, parameters gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron.bridge.models.layer_blocks import UncountableModel
from megatron.bridge.training.bucketing import bucketing
from megatron.bridge.training.exchanged_bytes import ElementBytes, element_bytes
from overlapkit.config.run import Run
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.parameters import COUNTED, Parameters, StageParameters


@dataclass(frozen=True)
class ChunkExchange:
    """What one model chunk of one stage exchanges: nothing where no other rank has a copy.

    Attributes:
        gradients, parameters: dense ones first, then experts'.
        alone: the share of the chunk that its last bucket contains. That bucket is reduced after
            the last gradient, so there is nothing left to hide it under; likewise the first
            parameters that a forward needs.
    """

    gradients: tuple[Collective, ...]
    parameters: tuple[Collective, ...]
    alone: float


@dataclass(frozen=True, kw_only=True)
class GradientExchange:
    """The exchange of all stages.

    Attributes:
        chunks: as ``[pp_rank][vp_stage]``, equal ones being one object; per step, or with
            `per_layer` per microbatch.
        per_layer: FSDP: every microbatch gathers parameters layer by layer for its forward and
            again for its backward, and reduce-scatters gradients layer by layer.
        gradient_bytes: of a gradient element as reduced.
        parameter_bytes: of a parameter element as gathered, unless it is kept in FP8.
    """

    chunks: tuple[tuple[ChunkExchange, ...], ...]
    per_layer: bool
    gradient_bytes: float
    parameter_bytes: float


def gradient_exchange(
    run: Run, layout: Layout, parameters: Sequence[StageParameters], *, cut: bool = True
) -> GradientExchange:
    """How a run's data-parallel ranks exchange gradients and parameters.

    Args:
        run: with its configurations effective.
        layout: of the run.
        parameters: of each pipeline stage.
        cut: whether to cut the gradients into buckets; if not, each chunk counts as one bucket.
    """
    sizes = element_bytes(run.model, run.ddp)
    sharded = layout.sharding == "parameters"
    alone = _alone(run, layout) if cut and not sharded else {}
    known: dict[tuple[Parameters, float], ChunkExchange] = {}

    def exchanged(params: Parameters, last: float) -> ChunkExchange:
        if (params, last) not in known:
            known[params, last] = ChunkExchange(
                gradients=_gradients(layout, params, sizes.gradient),
                parameters=_parameters(layout, params, sizes),
                alone=last,
            )
        return known[params, last]

    chunks = tuple(
        tuple(
            exchanged(params, alone.get((stage, chunk), 1.0))
            for chunk, params in enumerate(of_stage.chunks)
        )
        for stage, of_stage in enumerate(parameters)
    )
    return GradientExchange(
        chunks=chunks,
        per_layer=sharded,
        gradient_bytes=float(sizes.gradient),
        parameter_bytes=float(sizes.parameter),
    )


def _alone(run: Run, layout: Layout) -> dict[tuple[int, int], float]:
    try:
        cut = bucketing(
            run.model,
            run.ddp,
            data_parallel_size=layout.dp,
            overlap_param_gather_with_optimizer_step=bool(
                getattr(run.optimizer, "overlap_param_gather_with_optimizer_step", False)
            ),
        )
    except UncountableModel:
        # Megatron-FSDP with a strategy that does not shard parameters has one unit per layer.
        return {}
    return {
        (chunk.pp_rank, chunk.vp_stage): chunk.buckets[-1].size
        / sum(bucket.size for bucket in chunk.buckets)
        for chunk in cut
        if chunk.collectives > 1
    }


def _gradients(layout: Layout, params: Parameters, size: int) -> tuple[Collective, ...]:
    kind = "all-reduce" if layout.sharding == "none" else "reduce-scatter"
    each = given("gradient bytes", size, "B", "ddp.grad_reduce_in_fp32")
    result = []
    for group in _groups(layout, params):
        count = given(f"{group.what} parameters of the chunk", group.count, "", COUNTED)
        result.append(group.collective(kind, (count * each).called(f"{group.what} gradients", "B")))
    return tuple(result)


def _parameters(layout: Layout, params: Parameters, sizes: ElementBytes) -> tuple[Collective, ...]:
    if layout.sharding == "none":
        return ()
    each = given("parameter bytes", sizes.parameter, "B", "mixed_precision.params_dtype")
    result = []
    for group in _groups(layout, params):
        in_fp8 = group.fp8 if sizes.fp8_parameter == 1 else 0
        fp8 = given(f"{group.what} parameters gathered in FP8", in_fp8, "", COUNTED)
        other = given(f"other {group.what} parameters", group.count - in_fp8, "", COUNTED)
        payload = fp8 * literal(1, "B") + other * each
        result.append(
            group.collective("all-gather", payload.called(f"{group.what} parameters", "B"))
        )
    return tuple(result)


@dataclass(frozen=True)
class _Replicas:
    """Parameters and the ranks that have copies of them.

    Attributes:
        what: "dense" or "expert".
        count: parameters of the chunk.
        fp8: how many of them are kept in FP8.
        ranks: members of the group.
        stride: ranks from one member to the next.
    """

    what: str
    count: int
    fp8: int
    ranks: int
    stride: int

    def collective(self, kind: str, payload: Figure) -> Collective:
        """A collective of the group, once a step."""
        return Collective(
            dimension="DP",
            name=payload.name,
            kind=kind,
            payload=payload,
            ranks=self.ranks,
            stride=self.stride,
            phase="step",
        )


def _groups(layout: Layout, params: Parameters) -> list[_Replicas]:
    """The groups that have something to exchange."""
    dense = _Replicas("dense", params.dense, params.dense_fp8, layout.replicas, layout.tp)
    expert = _Replicas(
        "expert",
        params.expert,
        params.expert_fp8,
        layout.expert_replicas,
        layout.expert_tp * layout.ep,
    )
    return [group for group in (dense, expert) if group.count and group.ranks > 1]
