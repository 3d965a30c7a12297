"""The gradient buckets that Megatron-Core's `DistributedDataParallel` divides a model into.

A bucket is the unit of overlap: its reduction starts when its last gradient is ready, and its
parameter all-gather hides under the layers before it. One bucket overlaps nothing, whatever the
switches, so the number of buckets says more than the switches. The rules are those of megatron-core
0.16, and a functional test compares them with its real `DistributedDataParallel`:

- Parameters are taken in reverse order, and the parameter that fills a bucket closes it. Experts
  (with expert parallelism) and FP8 weights have separate buffers, and so separate buckets.
- Only the first model chunk of the first pipeline stage is divided: Megatron-LM and Megatron-Bridge
  pass `disable_bucketing` for the others, and for all chunks where
  `overlap_param_gather_with_optimizer_step` is on.
- The default bucket size depends on the data-parallel size without context parallelism. Padding
  depends on the group that reduces, with context parallelism.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel
from megatron.bridge.models.model_fields import read_size
from megatron.bridge.models.model_shape import LayerSpec, ModelShape, read_shape
from megatron.bridge.models.parameter_count import ParameterTensor, tensor_groups
from megatron.bridge.models.pipeline_layout import ModelPart, parts_by_chunk

_BUCKET_ALIGNMENT = 128
_BUSBW_ALIGNMENT = 2**16
_TENSOR_ALIGNMENT = 64


@dataclass(frozen=True)
class Bucket:
    """One gradient bucket.

    Attributes:
        tensors: positions of its tensors in the chunk's parameters, in order of readiness.
        parameters: elements of these tensors.
        size: elements of its buffer and of its reduction: parameters and padding.
        expert: whether it is reduced over the expert-data-parallel group.
        fp8: whether it contains FP8 weights.
        end: elements up to the end of its last tensor; the rest of `size` is padding.
        ranks: how many reduce it together.
    """

    tensors: tuple[int, ...]
    parameters: int
    size: int
    expert: bool
    fp8: bool
    end: int
    ranks: int


@dataclass(frozen=True)
class ChunkBuckets:
    """How one model chunk's gradients are reduced.

    Attributes:
        pp_rank: pipeline stage, from 0.
        vp_stage: model chunk within the stage, from 0.
        bucket_size: parameters at which a bucket is closed; None where the chunk is not divided.
        uncut_because: why bucket_size is None; None where it is not.
        parameters: elements of the chunk on one rank.
        buckets: in the order in which they become ready.
        groups: positions in `buckets` of those that share a collective, which starts when the last
            of them is ready: reductions (and parameter gathers) per step.
    """

    pp_rank: int
    vp_stage: int
    bucket_size: int | None
    uncut_because: str | None
    parameters: int
    buckets: tuple[Bucket, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def collectives(self) -> int:
        """Reductions (and parameter gathers) per step."""
        return len(self.groups)


CORE_LEAST = 40_000_000
"""Megatron-Core's smallest default bucket, in parameters."""
CORE_PER_RANK = 1_000_000
"""What it adds for each data-parallel rank, so that latency does not dominate large rings."""


AT_WRAP = "bucket_size_at_wrap"
"""An attribute of a ddp: the size that a framework takes for None before Megatron-Core does."""


def default_bucket_size(data_parallel_size: int) -> int:
    """Parameters per bucket where bucket_size is None and overlap_grad_reduce is on.

    For Megatron-Core, `data_parallel_size` excludes context parallelism.
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
        model: see `chunk_parameters`; frozen parameters (LoRA) are not considered.
        ddp: a `DistributedDataParallelConfig`, or an object with its attribute names.
        data_parallel_size: world size / (TP x PP x CP).
        expert_data_parallel_size: None computes it: DP x CP x TP / (EP x expert TP).
        vocab_size: see `chunk_parameters`.
        layer_spec: see `chunk_parameters`.
        overlap_param_gather_with_optimizer_step: the optimizer's switch of that name.

    Raises:
        UncountableModel: the configuration does not determine them, or Megatron-FSDP shards the
            model, which has units instead of buckets.
    """
    if getattr(ddp, "use_megatron_fsdp", False) or getattr(ddp, "use_custom_fsdp", False):
        raise UncountableModel("use_megatron_fsdp is on: FSDP has units, and no gradient buckets")
    shape = read_shape(model, vocab_size=vocab_size, layer_spec=layer_spec)
    ranks = reducing_ranks(
        model,
        ddp,
        shape,
        data_parallel_size=data_parallel_size,
        expert_data_parallel_size=expert_data_parallel_size,
    )
    layout = parts_by_chunk(model)
    chunks = []
    known: dict[Any, tuple[tuple[Bucket, ...], tuple[tuple[int, ...], ...]]] = {}
    for vp_stage, row in enumerate(layout):
        for pp_rank, part in enumerate(row):
            bucket_size, uncut = _size_in_force(
                ddp, data_parallel_size, pp_rank, vp_stage, overlap_param_gather_with_optimizer_step
            )
            disabled = vp_stage > 0 or overlap_param_gather_with_optimizer_step
            kinds = tuple((shape.blocks[layer], shape.fp8_layers[layer]) for layer in part.layers)
            key = kinds, replace(part, layers=range(0)), bucket_size, disabled
            if key not in known:
                known[key] = _cut_chunk(
                    shape,
                    part,
                    bucket_size,
                    disabled,
                    bool(getattr(ddp, "use_distributed_optimizer", False)),
                    bool(getattr(ddp, "pad_buckets_for_high_nccl_busbw", False)),
                    ranks,
                )
            buckets, groups = known[key]
            count = sum(bucket.parameters for bucket in buckets)
            chunks.append(
                ChunkBuckets(pp_rank, vp_stage, bucket_size, uncut, count, buckets, groups)
            )
    return chunks


def reducing_ranks(
    model: Any,
    ddp: Any,
    shape: ModelShape,
    *,
    data_parallel_size: int,
    expert_data_parallel_size: int | None = None,
) -> tuple[int, int]:
    """Ranks that reduce dense gradients together, and ranks that reduce experts' gradients.

    Args:
        model, ddp, data_parallel_size, expert_data_parallel_size: as in `bucketing`.
        shape: the model's.

    Raises:
        UncountableModel: the ranks do not divide into such groups.
    """
    dense = data_parallel_size * read_size(model, "context_parallel_size")
    expert = dense
    if shape.ep > 1:
        expert = expert_data_parallel_size or _quotient(
            dense * shape.tp,
            shape.ep * shape.expert_tp,
            "DP x CP x TP over expert_model_parallel_size x expert_tensor_parallel_size",
        )
    instances = getattr(ddp, "num_distributed_optimizer_instances", 1)
    what = "the data-parallel group over num_distributed_optimizer_instances"
    return _quotient(dense, instances, what), _quotient(expert, instances, what)


def count_buckets(
    parameters: Sequence[ParameterTensor],
    bucket_size: int | None,
    *,
    data_parallel_size: int,
    use_distributed_optimizer: bool,
    pad_for_busbw: bool = False,
    expert_data_parallel_size: int | None = None,
) -> list[int]:
    """Elements of each bucket, including padding, in order of readiness; see `cut_buckets`."""
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
    """Divide one chunk's parameters into buckets, in order of readiness.

    With the distributed optimizer a tensor starts at a multiple of 64 elements within its bucket. A
    bucket ends at a multiple of 128 and of the ranks (and of 65,536 for bus bandwidth). Each shared
    embedding has a separate bucket, so that both pipeline stages shard it the same way.

    Args:
        parameters: in the order of `named_parameters()`.
        bucket_size: elements, including tensor padding, at which a bucket is closed; None makes one
            bucket.
        data_parallel_size: ranks that reduce together: DP x CP, divided by
            num_distributed_optimizer_instances.
        use_distributed_optimizer: whether gradients are reduce-scattered.
        pad_for_busbw: pad_buckets_for_high_nccl_busbw.
        expert_data_parallel_size: the same for experts; None takes data_parallel_size.
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
        for members in _cut(
            positions, parameters, bucket_size, tensor_multiple, use_distributed_optimizer
        ):
            end = 0
            for position in members:
                end = _padded(end, tensor_multiple) + parameters[position].numel
            exact = sum(parameters[position].numel for position in members)
            padded = _padded(end, bucket_multiple)
            buckets.append(Bucket(tuple(members), exact, padded, expert, fp8, end, ranks))
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
    members: list[int] = []
    end = 0
    for position in positions:
        tensor = parameters[position]
        alone = embeddings_alone and tensor.shared_embedding
        if alone and members:
            closed.append(members)
            members, end = [], 0
        members.append(position)
        end = _padded(end, tensor_multiple) + tensor.numel
        if alone or (bucket_size is not None and end >= bucket_size):
            closed.append(members)
            members, end = [], 0
    return [*closed, members] if members else closed


@lru_cache(maxsize=256)
def _cut_chunk(
    shape: ModelShape,
    part: ModelPart,
    bucket_size: int | None,
    disabled: bool,
    use_distributed_optimizer: bool,
    pad_for_busbw: bool,
    ranks: tuple[int, int],
) -> tuple[tuple[Bucket, ...], tuple[tuple[int, ...], ...]]:
    """A chunk's buckets, and which of them share a collective.

    The result is cached, since several rules need it for one run.

    Args:
        part: what the chunk has.
        ranks: as of `reducing_ranks`.
    """
    groups = tensor_groups(shape, part)
    buckets = cut_buckets(
        [tensor for group in groups for tensor in group.tensors],
        bucket_size,
        data_parallel_size=ranks[0],
        use_distributed_optimizer=use_distributed_optimizer,
        pad_for_busbw=pad_for_busbw,
        expert_data_parallel_size=ranks[1],
    )
    return tuple(buckets), tuple(
        group
        for expert in (False, True)
        for group in _grouped(
            buckets, [n for n, b in enumerate(buckets) if b.expert is expert], whole=disabled
        )
    )


def _grouped(
    buckets: Sequence[Bucket], numbers: Sequence[int], *, whole: bool
) -> list[tuple[int, ...]]:
    """Those of one kind of ranks, by collective; `whole` where bucketing is disabled."""
    fp8 = [number for number in numbers if buckets[number].fp8]
    if whole or not fp8:
        # Where bucketing is disabled, the buffers of the same ranks travel together.
        return ([tuple(numbers)] if numbers else []) if whole else [(n,) for n in numbers]
    # Buffers of weights that are not FP8 travel with the last FP8 bucket.
    others = [number for number in numbers if not buckets[number].fp8]
    return [*((number,) for number in fp8[:-1]), (fp8[-1], *others)]


def _size_in_force(
    ddp: Any, data_parallel_size: int, pp_rank: int, vp_stage: int, with_optimizer_step: bool
) -> tuple[int | None, str | None]:
    if not getattr(ddp, "overlap_grad_reduce", False):
        return None, "overlap_grad_reduce is off"
    if with_optimizer_step:
        return None, "overlap_param_gather_with_optimizer_step is on"
    if pp_rank > 0:
        return None, "only the first pipeline stage is divided into buckets"
    if vp_stage > 0:
        return None, "only the first model chunk is divided into buckets"
    requested = getattr(ddp, "bucket_size", None)
    if requested is None:
        requested = getattr(ddp, AT_WRAP, None) or default_bucket_size(data_parallel_size)
    return requested, None


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple


def _quotient(total: int, parts: int, what: str) -> int:
    if total % parts:
        raise UncountableModel(f"{what}: {total} cannot be divided by {parts}")
    return total // parts
