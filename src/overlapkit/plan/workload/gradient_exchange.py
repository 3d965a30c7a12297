"""The data-parallel exchange of a step: gradients reduced, parameters gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.model_shape import UncountableModel
from megatron.bridge.training.bucketing import bucketing
from overlapkit.config.run import Run
from overlapkit.plan.figure import given, literal
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.parameters import Parameters, StageParameters


@dataclass(frozen=True)
class ChunkExchange:
    """What one model chunk of one stage exchanges: nothing where no other rank has a copy.

    Attributes:
        gradients, parameters: dense ones first, then experts'.
        alone: the share of the chunk that its last bucket holds: reduced after the last gradient,
            so with nothing left to hide under; the first parameters needed likewise.
    """

    gradients: tuple[Collective, ...]
    parameters: tuple[Collective, ...]
    alone: float


@dataclass(frozen=True)
class GradientExchange:
    """The exchange of all stages.

    Attributes:
        chunks: as ``[pp_rank][vp_stage]``, equal ones being one object; per step, or with
            `per_layer` per microbatch.
        per_layer: FSDP: parameters are gathered layer by layer for the forward and again for the
            backward of every microbatch, and gradients reduce-scattered layer by layer.
        gradient_bytes: of a gradient element as reduced.
        parameter_bytes: of a parameter element that is not kept in FP8, as gathered.
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
        cut: whether to cut the gradients into buckets; without, as if each chunk were one.
    """
    half = bool(getattr(run.model, "bf16", False) or getattr(run.model, "fp16", False))
    size = 2.0 if half else 4.0
    gradient = 4.0 if getattr(run.ddp, "grad_reduce_in_fp32", False) else size
    sharded = layout.sharding == "parameters"
    alone = _alone(run, layout) if cut and not sharded else {}
    alike: dict[tuple[Parameters, float], ChunkExchange] = {}

    def exchanged(held: Parameters, last: float) -> ChunkExchange:
        if (held, last) not in alike:
            alike[held, last] = ChunkExchange(
                _gradients(layout, held, gradient), _parameters(run.ddp, layout, held, size), last
            )
        return alike[held, last]

    chunks = tuple(
        tuple(
            exchanged(held, alone.get((stage, chunk), 1.0))
            for chunk, held in enumerate(of_stage.chunks)
        )
        for stage, of_stage in enumerate(parameters)
    )
    return GradientExchange(chunks, sharded, gradient, size)


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
        # Megatron-FSDP with a strategy that shards no parameters has units of a layer each.
        return {}
    return {
        (chunk.pp_rank, chunk.vp_stage): chunk.buckets[-1].size
        / sum(bucket.size for bucket in chunk.buckets)
        for chunk in cut
        if chunk.collectives > 1
    }


def _gradients(layout: Layout, held: Parameters, size: float) -> tuple[Collective, ...]:
    kind = "all-reduce" if layout.sharding == "none" else "reduce-scatter"
    each = given("gradient bytes", size, "B", "ddp.grad_reduce_in_fp32")
    result = []
    for what, count, ranks, stride in _groups(layout, held):
        payload = (
            given(f"{what} parameters of the chunk", count, "", "counted tensor by tensor") * each
        ).called(f"{what} gradients", "B")
        result.append(Collective("DP", payload.name, kind, payload, ranks, stride, "step"))
    return tuple(result)


def _parameters(ddp: Any, layout: Layout, held: Parameters, size: float) -> tuple[Collective, ...]:
    if layout.sharding == "none":
        return ()
    # MXFP8 needs its copies in both directions, so parameters travel in BF16 through the gradient
    # buffer (reuse_grad_buf_for_mxfp8_param_ag).
    small = bool(getattr(ddp, "fp8_param_gather", False)) and not getattr(
        ddp, "reuse_grad_buf_for_mxfp8_param_ag", False
    )
    result = []
    for what, count, ranks, stride in _groups(layout, held):
        fp8 = (held.expert_fp8 if what == "expert" else held.dense_fp8) if small else 0
        other = given(f"other {what} parameters", count - fp8, "", "counted tensor by tensor")
        payload = given(
            f"{what} parameters gathered in FP8", fp8, "", "counted tensor by tensor"
        ) * literal(1, "B") + other * given(
            "parameter bytes", size, "B", "mixed_precision.params_dtype"
        )
        payload = payload.called(f"{what} parameters", "B")
        result.append(Collective("DP", payload.name, "all-gather", payload, ranks, stride, "step"))
    return tuple(result)


def _groups(layout: Layout, held: Parameters) -> list[tuple[str, int, int, int]]:
    """Kind of parameters, their number, ranks that exchange them, stride of these."""
    stride = layout.expert_tp * layout.ep
    groups = [
        ("dense", held.dense, layout.replicas, layout.tp),
        ("expert", held.expert, layout.expert_replicas, stride),
    ]
    return [group for group in groups if group[1] and group[2] > 1]
