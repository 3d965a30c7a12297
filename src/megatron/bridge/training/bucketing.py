"""Into how many gradient buckets Megatron-Core's `DistributedDataParallel` will cut a model.

A bucket is the unit of overlap: its reduction starts once its last gradient is there, its parameter
all-gather hides under the layers before it. One bucket overlaps nothing, however the switches
stand, so the number says more than they do. The rules are those of megatron-core 0.16, and a
functional test holds them to its real `DistributedDataParallel`:

- Parameters are taken in reverse order, and a bucket is closed by the one that fills it. Experts
  (with expert parallelism) and FP8 weights have buffers, and so buckets, of their own.
- Only the first pipeline stage is cut up, and only its first model chunk: Megatron-LM and
  Megatron-Bridge pass `disable_bucketing` for the others, and for all chunks where
  `overlap_param_gather_with_optimizer_step` is on.
- The default bucket size follows the data-parallel size without context parallelism; padding
  follows the group that really reduces, with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from typing import Any

from megatron.bridge.models.model_shape import (
    LayerSpec,
    ModelShape,
    UncountableModel,
    read_shape,
    read_size,
)
from megatron.bridge.models.parameter_count import ParameterTensor, tensor_groups
from megatron.bridge.models.pipeline_layout import layers_by_chunk

_BUCKET_ALIGNMENT = 128
_BUSBW_ALIGNMENT = 2**16
_TENSOR_ALIGNMENT = 64


@dataclass(frozen=True)
class Bucket:
    """One gradient bucket.

    Attributes:
        tensors: positions of its tensors in the chunk's parameters, in order of readiness.
        parameters: elements of these tensors.
        size: elements of its buffer, and so of its reduction: parameters and padding.
        expert: whether it is reduced over the expert-data-parallel group.
        fp8: whether it holds FP8 weights.
    """

    tensors: tuple[int, ...]
    parameters: int
    size: int
    expert: bool
    fp8: bool


@dataclass(frozen=True)
class ChunkBuckets:
    """How one model chunk's gradients travel.

    Attributes:
        pp_rank: pipeline stage, from 0.
        vp_stage: model chunk within the stage, from 0.
        bucket_size: parameters from which on a bucket is closed; None where nothing is cut.
        uncut_because: why bucket_size is None, naming the cause; None where there is one.
        parameters: elements that one rank holds of the chunk.
        buckets: in the order in which they become ready.
        collectives: reductions (and parameter gathers) started a step: one a bucket, but buckets
            that Megatron-Core groups travel as one.
    """

    pp_rank: int
    vp_stage: int
    bucket_size: int | None
    uncut_because: str | None
    parameters: int
    buckets: tuple[Bucket, ...]
    collectives: int


CORE_LEAST = 40_000_000
"""Megatron-Core's smallest default bucket, in parameters."""
CORE_PER_RANK = 1_000_000
"""What it adds for each data-parallel rank, so that large rings are not ruled by latency."""


def default_bucket_size(data_parallel_size: int) -> int:
    """Parameters per bucket where bucket_size is None and overlap_grad_reduce is on.

    `data_parallel_size` is that without context parallelism.
    """
    return max(CORE_LEAST, CORE_PER_RANK * data_parallel_size)


def bucketing(
    model: Any,
    ddp: Any,
    *,
    data_parallel_size: int,
    expert_data_parallel_size: int | None = None,
    vocab_size: int | None = None,
    layer_spec: LayerSpec | None = None,
    overlap_param_gather_with_optimizer_step: bool = False,
) -> list[ChunkBuckets]:
    """The buckets of every model chunk on every pipeline stage, chunk 0 of all stages first.

    Args:
        model: see `chunk_parameters`; frozen parameters (LoRA) are not known here.
        ddp: a `DistributedDataParallelConfig`, or an object with its attribute names.
        data_parallel_size: world size / (TP x PP x CP).
        expert_data_parallel_size: None computes it: DP x CP x TP / (EP x expert TP).
        vocab_size: see `chunk_parameters`.
        layer_spec: see `chunk_parameters`.
        overlap_param_gather_with_optimizer_step: the optimizer's switch of that name.

    Raises:
        UncountableModel: the configuration does not tell, or Megatron-FSDP shards the model, which
            has units instead of buckets.
    """
    if getattr(ddp, "use_megatron_fsdp", False) or getattr(ddp, "use_custom_fsdp", False):
        raise UncountableModel("use_megatron_fsdp is on: FSDP has units, and no gradient buckets")
    shape = read_shape(model, vocab_size=vocab_size, layer_spec=layer_spec)
    instances = getattr(ddp, "num_distributed_optimizer_instances", 1)
    dense_ranks = data_parallel_size * read_size(model, "context_parallel_size")
    expert_ranks = dense_ranks
    if shape.ep > 1:
        expert_ranks = expert_data_parallel_size or _whole(
            dense_ranks * shape.tp,
            shape.ep * shape.expert_tp,
            "DP x CP x TP over expert_model_parallel_size x expert_tensor_parallel_size",
        )
    instances_named = "the data-parallel group over num_distributed_optimizer_instances"
    dense_ranks = _whole(dense_ranks, instances, instances_named)
    expert_ranks = _whole(expert_ranks, instances, instances_named)
    layout = layers_by_chunk(model)
    chunks = []
    alike: dict[Any, tuple[tuple[Bucket, ...], int]] = {}
    for vp_stage, row in enumerate(layout):
        for pp_rank, layers in enumerate(row):
            bucket_size, uncut = _size_in_force(
                ddp, data_parallel_size, pp_rank, vp_stage, overlap_param_gather_with_optimizer_step
            )
            disabled = vp_stage > 0 or overlap_param_gather_with_optimizer_step
            ends = pp_rank + vp_stage == 0, vp_stage == len(layout) - 1 and pp_rank == len(row) - 1
            kinds = tuple((shape.moe_layers[layer], shape.fp8_layers[layer]) for layer in layers)
            key = kinds, ends, bucket_size, disabled
            if key not in alike:
                alike[key] = _cut_chunk(
                    shape,
                    layers,
                    ends,
                    bucket_size,
                    disabled,
                    bool(getattr(ddp, "use_distributed_optimizer", False)),
                    bool(getattr(ddp, "pad_buckets_for_high_nccl_busbw", False)),
                    (dense_ranks, expert_ranks),
                )
            buckets, collectives = alike[key]
            count = sum(bucket.parameters for bucket in buckets)
            chunks.append(
                ChunkBuckets(pp_rank, vp_stage, bucket_size, uncut, count, buckets, collectives)
            )
    return chunks


def count_buckets(
    parameters: Sequence[ParameterTensor],
    bucket_size: int | None,
    *,
    data_parallel_size: int,
    use_distributed_optimizer: bool,
    pad_for_busbw: bool = False,
    expert_data_parallel_size: int | None = None,
) -> list[int]:
    """Elements of each bucket, padding included, in order of readiness; see `cut_buckets`."""
    buckets = cut_buckets(
        parameters,
        bucket_size,
        data_parallel_size=data_parallel_size,
        use_distributed_optimizer=use_distributed_optimizer,
        pad_for_busbw=pad_for_busbw,
        expert_data_parallel_size=expert_data_parallel_size,
    )
    return [bucket.size for bucket in buckets]


def cut_buckets(
    parameters: Sequence[ParameterTensor],
    bucket_size: int | None,
    *,
    data_parallel_size: int,
    use_distributed_optimizer: bool,
    pad_for_busbw: bool = False,
    expert_data_parallel_size: int | None = None,
) -> list[Bucket]:
    """Cut one chunk's parameters into buckets, in order of readiness.

    With the distributed optimizer a tensor starts at a multiple of 64 elements within its bucket, a
    bucket ends at one of 128 and of the ranks (and of 65,536 for bus bandwidth), and each shared
    embedding has a bucket of its own, so that both pipeline stages shard it alike.

    Args:
        parameters: in the order of `named_parameters()`.
        bucket_size: elements, tensor padding included, from which on a bucket is closed; None cuts
            nothing.
        data_parallel_size: ranks that reduce together: DP x CP, over
            num_distributed_optimizer_instances.
        use_distributed_optimizer: whether gradients are reduce-scattered.
        pad_for_busbw: pad_buckets_for_high_nccl_busbw.
        expert_data_parallel_size: the same ranks for experts; None takes data_parallel_size.
    """
    buffers: dict[tuple[bool, bool], list[int]] = {}
    for position in range(len(parameters) - 1, -1, -1):
        tensor = parameters[position]
        buffers.setdefault((tensor.expert, tensor.fp8), []).append(position)
    buckets: list[Bucket] = []
    for (expert, fp8), positions in buffers.items():
        ranks = (expert_data_parallel_size if expert else None) or data_parallel_size
        bucket_multiple = tensor_multiple = 1
        if use_distributed_optimizer:
            bucket_multiple = lcm(ranks, _BUSBW_ALIGNMENT if pad_for_busbw else _BUCKET_ALIGNMENT)
            tensor_multiple = _TENSOR_ALIGNMENT
        for held in _cut(
            positions, parameters, bucket_size, tensor_multiple, use_distributed_optimizer
        ):
            end = 0
            for position in held:
                end = _padded(end, tensor_multiple) + parameters[position].numel
            exact = sum(parameters[position].numel for position in held)
            padded = _padded(end, bucket_multiple)
            buckets.append(Bucket(tuple(held), exact, padded, expert, fp8))
    return sorted(buckets, key=lambda bucket: -bucket.tensors[-1])


def _cut(
    positions: Iterable[int],
    parameters: Sequence[ParameterTensor],
    bucket_size: int | None,
    tensor_multiple: int,
    embeddings_alone: bool,
) -> list[list[int]]:
    """One buffer's tensors, by bucket."""
    closed: list[list[int]] = []
    held: list[int] = []
    end = 0
    for position in positions:
        tensor = parameters[position]
        alone = embeddings_alone and tensor.shared_embedding
        if alone and held:
            closed.append(held)
            held, end = [], 0
        held.append(position)
        end = _padded(end, tensor_multiple) + tensor.numel
        if alone or (bucket_size is not None and end >= bucket_size):
            closed.append(held)
            held, end = [], 0
    return [*closed, held] if held else closed


@lru_cache(maxsize=256)
def _cut_chunk(
    shape: ModelShape,
    layers: range,
    ends: tuple[bool, bool],
    bucket_size: int | None,
    disabled: bool,
    use_distributed_optimizer: bool,
    pad_for_busbw: bool,
    ranks: tuple[int, int],
) -> tuple[tuple[Bucket, ...], int]:
    """A chunk's buckets and their collectives; kept, since several rules ask for one run's.

    Args:
        ends: whether the chunk is the model's first, and whether it is the last.
        ranks: that reduce dense gradients, and experts'.
    """
    groups = tensor_groups(shape, layers, first=ends[0], last=ends[1])
    buckets = cut_buckets(
        [tensor for group in groups for tensor in group.tensors],
        bucket_size,
        data_parallel_size=ranks[0],
        use_distributed_optimizer=use_distributed_optimizer,
        pad_for_busbw=pad_for_busbw,
        expert_data_parallel_size=ranks[1],
    )
    collectives = 0
    for expert in (False, True):
        together = [bucket for bucket in buckets if bucket.expert is expert]
        fp8 = sum(bucket.fp8 for bucket in together)
        # Where bucketing is disabled, the buffers of the same ranks travel together. Otherwise
        # buffers of weights that are not FP8 travel with the last FP8 bucket.
        collectives += min(len(together), 1) if disabled else fp8 or len(together)
    return tuple(buckets), collectives


def _size_in_force(
    ddp: Any, data_parallel_size: int, pp_rank: int, vp_stage: int, with_optimizer_step: bool
) -> tuple[int | None, str | None]:
    if not getattr(ddp, "overlap_grad_reduce", False):
        return None, "overlap_grad_reduce is off"
    if with_optimizer_step:
        return None, "overlap_param_gather_with_optimizer_step is on"
    if pp_rank > 0:
        return None, "only the first pipeline stage is bucketed"
    if vp_stage > 0:
        return None, "only the first model chunk is bucketed"
    asked = getattr(ddp, "bucket_size", None)
    return default_bucket_size(data_parallel_size) if asked is None else asked, None


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple


def _whole(total: int, parts: int, what: str) -> int:
    if total % parts:
        raise UncountableModel(f"{what}: {total} cannot be divided by {parts}")
    return total // parts
