"""The gradient buckets of a run: what each one exchanges, and what is left to hide it under."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

from megatron.bridge.models.layer_blocks import UncountableModel
from megatron.bridge.models.model_shape import ModelShape, read_shape
from megatron.bridge.models.parameter_count import chunk_tensor_groups
from megatron.bridge.training.bucketing import Bucket, ChunkBuckets, bucketing, reducing_ranks
from megatron.bridge.training.exchanged_bytes import ElementBytes, element_bytes
from overlapkit.config.run import Run

HiddenBy = Literal["backward", "earlier chunks", "pipeline bubble"]
"""What still computes when a bucket is ready: the backward of the layers before it, the backward of
the stage's earlier model chunks, or that of the earlier pipeline stages, for which a stage that has
finished would wait anyway."""


LISTED = 10_000
"""Buckets of a chunk that are described: a collective each, many times more than any run has."""


@dataclass(frozen=True)
class BucketExchange:
    """What one bucket exchanges in a step.

    Attributes:
        parameters: elements of its tensors.
        elements: elements that are reduced: parameters and padding.
        ranks: how many reduce it together; with one there is no communication.
        reduced_bytes: of its gradients on one rank.
        gathered_bytes: of its parameters; 0 where they are not gathered, None where the size is not
            known.
        first: name of the parameter whose gradient comes first.
        last: name of the one whose gradient comes last, which makes the bucket ready.
        expert: whether it contains experts, which are reduced over other ranks.
        hidden_by: what is left to hide its reduction under; None: nothing.
    """

    parameters: int
    elements: int
    ranks: int
    reduced_bytes: int
    gathered_bytes: int | None
    first: str
    last: str
    expert: bool
    hidden_by: HiddenBy | None


@dataclass(frozen=True)
class ChunkExchange:
    """The buckets of model chunks that have equal ones.

    Attributes:
        places: pipeline stage and model chunk of each, from 0.
        bucket_size: parameters at which a bucket is closed; None where the chunk is not divided.
        uncut_because: why bucket_size is None; None where it is not.
        buckets: in the order in which they become ready.
    """

    places: tuple[tuple[int, int], ...]
    bucket_size: int | None
    uncut_because: str | None
    buckets: tuple[BucketExchange, ...]

    @property
    def parameters(self) -> int:
        """Parameters of one of the chunks on one rank."""
        return sum(bucket.parameters for bucket in self.buckets)

    @property
    def reduced_bytes(self) -> int:
        """Bytes of gradients that one rank reduces for one of the chunks."""
        return sum(bucket.reduced_bytes for bucket in self.buckets)

    @property
    def exposed_bytes(self) -> int:
        """Bytes of gradients for which nothing is left that could hide their reduction."""
        return sum(b.reduced_bytes for b in self.buckets if b.hidden_by is None)


@dataclass(frozen=True)
class StageExchange:
    """What each GPU of some pipeline stages exchanges in a step, over all its model chunks.

    Attributes:
        stages: those that are alike, from 0.
        chunks: model chunks of each.
        buckets: of one GPU.
        parameters: that it holds.
        reduced_bytes: of gradients, with padding, that it hands to the data-parallel reduction.
        exposed_bytes: those of them for which nothing is left that could hide their reduction.
    """

    stages: tuple[int, ...]
    chunks: int
    buckets: int
    parameters: int
    reduced_bytes: int
    exposed_bytes: int


@dataclass(frozen=True)
class Buckets:
    """The buckets of every pipeline stage and model chunk of a run.

    Attributes:
        chunks: stage 0's chunk 0 first; equal chunks once.
        overlapped: whether overlap_grad_reduce is on.
        tied: whether the word embedding is also the output layer's weight.
    """

    chunks: tuple[ChunkExchange, ...]
    overlapped: bool
    tied: bool

    @property
    def by_stage(self) -> list[StageExchange]:
        """The totals of each pipeline stage, equal stages once."""
        chunks_of: dict[int, list[ChunkExchange]] = {}
        for chunk in self.chunks:
            for stage, _ in chunk.places:
                chunks_of.setdefault(stage, []).append(chunk)
        alike: dict[tuple[int, ...], list[int]] = {}
        for stage, chunks in sorted(chunks_of.items()):
            totals = (
                len(chunks),
                sum(len(chunk.buckets) for chunk in chunks),
                sum(chunk.parameters for chunk in chunks),
                sum(chunk.reduced_bytes for chunk in chunks),
                sum(chunk.exposed_bytes for chunk in chunks),
            )
            alike.setdefault(totals, []).append(stage)
        return [StageExchange(tuple(stages), *totals) for totals, stages in alike.items()]


def buckets_of(run: Run, data_parallel_size: int) -> Buckets | str:
    """The buckets of a run; in words why they are not known, or that there are none.

    Args:
        run: with its configurations effective.
        data_parallel_size: world size / (TP x PP x CP).
    """
    try:
        shape = read_shape(run.model)
        cut = bucketing(
            run.model,
            run.ddp,
            data_parallel_size=data_parallel_size,
            overlap_param_gather_with_optimizer_step=bool(
                getattr(run.optimizer, "overlap_param_gather_with_optimizer_step", False)
            ),
        )
        ranks = reducing_ranks(run.model, run.ddp, shape, data_parallel_size=data_parallel_size)
    except UncountableModel as cause:
        return f"the buckets of this model are not known: {cause}"
    if max(ranks) == 1:
        return "one rank holds each parameter: no gradient is reduced"
    most = max(len(chunk.buckets) for chunk in cut)
    if most > LISTED:
        return f"{most:,} buckets in one model chunk, too many to list: each costs its own latency"
    overlapped = bool(run.ddp.overlap_grad_reduce)
    sizes = element_bytes(run.model, run.ddp)
    if not getattr(run.ddp, "use_distributed_optimizer", False):
        sizes = replace(sizes, parameter=0, fp8_parameter=0)
    merged: dict[ChunkExchange, list[tuple[int, int]]] = {}
    for chunk in cut:
        names = _names(shape, run.model, chunk)
        # A collective starts when the last of its buckets is ready.
        ready = {number: max(group) for group in chunk.groups for number in group}
        exchanges = tuple(
            _exchange(
                bucket,
                names,
                sizes,
                ranks,
                _hidden_by(chunk, ready[number], overlapped=overlapped),
            )
            for number, bucket in enumerate(chunk.buckets)
        )
        alike = ChunkExchange((), chunk.bucket_size, chunk.uncut_because, exchanges)
        merged.setdefault(alike, []).append((chunk.pp_rank, chunk.vp_stage))
    chunks = tuple(replace(chunk, places=tuple(places)) for chunk, places in merged.items())
    return Buckets(chunks, overlapped, shape.tied)


def _hidden_by(chunk: ChunkBuckets, ready: int, *, overlapped: bool) -> HiddenBy | None:
    """What still computes once the chunk's bucket of the number `ready` is."""
    if overlapped and ready < len(chunk.buckets) - 1:
        return "backward"
    if overlapped and chunk.vp_stage > 0:
        return "earlier chunks"
    # A stage has finished its last backward while those before it still compute.
    return "pipeline bubble" if chunk.pp_rank > 0 else None


def _exchange(
    bucket: Bucket,
    name: Callable[[int], str],
    sizes: ElementBytes,
    ranks: tuple[int, int],
    hidden_by: HiddenBy | None,
) -> BucketExchange:
    together = ranks[1] if bucket.expert else ranks[0]
    gathered = sizes.fp8_parameter if bucket.fp8 else sizes.parameter
    alone = together == 1
    return BucketExchange(
        parameters=bucket.parameters,
        elements=bucket.size,
        ranks=together,
        reduced_bytes=0 if alone else bucket.size * sizes.gradient,
        gathered_bytes=0 if alone else None if gathered is None else bucket.size * gathered,
        first=name(bucket.tensors[0]),
        last=name(bucket.tensors[-1]),
        expert=bucket.expert,
        hidden_by=hidden_by,
    )


def _names(shape: ModelShape, model: Any, chunk: ChunkBuckets) -> Callable[[int], str]:
    """The name of the chunk's parameter at a position, layers numbered within the chunk."""
    groups = chunk_tensor_groups(shape, model, chunk.pp_rank, chunk.vp_stage)
    starts = [0, *accumulate(len(group.tensors) for group in groups)]

    def name(position: int) -> str:
        at = bisect_right(starts, position) - 1
        return groups[at].prefix + groups[at].tensors[position - starts[at]].name

    return name


def bucket_summary(buckets: Buckets) -> str:
    """The first stage's buckets, and what of its first chunk stays exposed, in one line."""
    first, *rest = buckets.chunks
    sizes = [bucket.reduced_bytes for bucket in first.buckets]
    several = _several_chunks(buckets)
    text = _count_text(sizes)
    if several:
        text = f"{text} in the first model chunk of the first pipeline stage, "
        text += f"{buckets.by_stage[0].buckets} in all its chunks"
    elif len(first.places) > 1 or rest:
        text += " on the first pipeline stage"
    if not buckets.overlapped:
        return f"{text}; none can be hidden: overlap_grad_reduce is off"
    exposed = [bucket for bucket in first.buckets if bucket.hidden_by is None]
    share = 100 * first.exposed_bytes / max(first.reduced_bytes, 1)
    which = "the last" if len(exposed) == 1 else f"{len(exposed)} that are reduced last"
    of = "that chunk's bytes" if several else "the bytes"
    which = "it" if len(sizes) == 1 and not several else f"{which}, {share:.0f} % of {of},"
    return f"{text}; {which} cannot be hidden: {_why_last(exposed[-1], tied=buckets.tied)}"


def _several_chunks(buckets: Buckets) -> bool:
    return any(chunk > 0 for each in buckets.chunks for _, chunk in each.places)


def _why_last(bucket: BucketExchange, *, tied: bool) -> str:
    if bucket.last.startswith("embedding.word_embeddings"):
        return f"the {'tied ' if tied else ''}embedding's gradient comes last"
    return f"the gradient of {bucket.last} comes last"


def _count_text(sizes: Sequence[int]) -> str:
    least, most = (f"{size / 1e6:,.1f}" for size in (min(sizes), max(sizes)))
    if len(sizes) == 1:
        return f"1 bucket of {most} MB"
    return f"{len(sizes)} buckets of {least if least == most else f'{least} to {most}'} MB"


def stage_text(stage: StageExchange) -> str:
    """The totals of a pipeline stage in one line, without the stage."""
    chunks = f" in {stage.chunks} model chunks" if stage.chunks > 1 else ""
    hidden = f", {stage.exposed_bytes / 1e6:,.1f} MB of them with nothing to hide them"
    return (
        f"{stage.buckets:,} bucket{'s' if stage.buckets != 1 else ''}{chunks}; a GPU holds "
        f"{stage.parameters:,} parameters and hands {stage.reduced_bytes / 1e6:,.1f} MB of "
        f"gradients to the reduction in a step{hidden if stage.exposed_bytes else ''}"
    )


def stage_titles(buckets: Buckets) -> Iterator[tuple[str, StageExchange]]:
    """The totals of each group of equal pipeline stages under its name: ``stages 1-3, each``."""
    for stage in buckets.by_stage:
        several = len(stage.stages) > 1
        yield f"stage{'s' if several else ''} {_spans(stage.stages)}{', each' * several}", stage


def places_text(chunk: ChunkExchange, *, several_chunks: bool) -> str:
    """Which stages and chunks these are: ``stages 1-3, chunk 0``."""
    if not several_chunks:
        stages = [stage for stage, _ in chunk.places]
        return f"stage{'s' if len(stages) > 1 else ''} {_spans(stages)}"
    by_chunk: dict[int, list[int]] = {}
    for stage, number in chunk.places:
        by_chunk.setdefault(number, []).append(stage)
    by_stages: dict[str, list[int]] = {}
    for number, stages in by_chunk.items():
        by_stages.setdefault(_spans(stages), []).append(number)
    return "; ".join(
        f"stage{'' if stages.isdecimal() else 's'} {stages}, "
        f"chunk{'s' if len(numbers) > 1 else ''} {_spans(numbers)}"
        for stages, numbers in by_stages.items()
    )


def _spans(numbers: Sequence[int]) -> str:
    """Numbers as ranges: ``0, 2-5``."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def chunk_titles(buckets: Buckets) -> Iterator[tuple[str, ChunkExchange]]:
    """Each group of equal chunks under its title: where it is, and how it is divided."""
    several = _several_chunks(buckets)
    for chunk in buckets.chunks:
        how = (
            f"closed at {chunk.bucket_size:,} parameters"
            if chunk.bucket_size is not None
            else f"not divided: {chunk.uncut_because}"
        )
        each = ", each" if len(chunk.places) > 1 else ""
        yield f"{places_text(chunk, several_chunks=several)}{each}: {how}", chunk
