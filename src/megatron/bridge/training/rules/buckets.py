"""How many buckets Megatron-Core divides the gradients into, and what that leaves to overlap.

Facts of megatron-core 0.16.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

from megatron.bridge.models.parameter_count import UncountableModel
from megatron.bridge.training.bucket_size import (
    AUTO,
    FEWEST_BUCKETS,
    TARGET_BUCKETS,
    auto_bucket_size,
)
from megatron.bridge.training.bucketing import (
    AT_WRAP,
    CORE_LEAST,
    CORE_PER_RANK,
    ChunkBuckets,
    bucketing,
    default_bucket_size,
)
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.remedies import WITH_STEP, Edits, off, overlapped_reduction
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.versions import Range

BUCKET_DEFAULT = rule(
    "core.bucket-default",
    Dimension.DP,
    claim=f"With overlap_grad_reduce on, bucket_size None means max({CORE_LEAST:,}, "
    f"{CORE_PER_RANK:,} x data-parallel size) parameters, without CP.",
    versions=(Range("bridge", until="0.5.1"),),
    source="Megatron-LM megatron/core/distributed/distributed_data_parallel.py",
)
BUCKET_IGNORED = rule(
    "core.bucket-ignored",
    Dimension.DP,
    claim="bucket_size is ignored while overlap_grad_reduce is off: there is one bucket.",
    remedy="set overlap_grad_reduce=true",
)
FIRST_CHUNK_ONLY = rule(
    "core.first-chunk-only",
    Dimension.DP,
    claim="bucket_size divides only the first model chunk of the first pipeline stage. In every "
    "other stage and chunk the dense gradients are one bucket (expert and FP8 gradients another).",
)
BUCKET_COUNT = rule(
    "core.bucket-count",
    Dimension.DP,
    claim="A bucket is closed when it contains bucket_size parameters, counted backward from the "
    "last layer. Expert parameters have separate buckets.",
)
SINGLE_BUCKET = rule(
    "core.single-bucket",
    Dimension.DP,
    claim="Where an entire model chunk fits into one bucket, overlap_grad_reduce hides nothing: "
    "the one reduction starts after the last gradient.",
    remedy="set comm_overlap.bucket_size=auto, or to a number well below the parameters per rank; "
    "overlap_param_gather_with_optimizer_step=false where that makes the one bucket",
)

_KNOB = "ddp.bucket_size"


def bucket_consequences(c: Context, optimizer: Any) -> Iterator[Decision]:
    """Notes on the buckets that a run will have; a refusal where a size is ignored."""
    requested = getattr(c.ddp, "bucket_size", None)
    if c.fsdp is not None or c.replicas == 1:
        return
    if not c.ddp.overlap_grad_reduce:
        # A size that comm_overlap chose by itself was not asked for.
        by_default = c.sets_data_parallel and c.request.bucket_size is None
        if requested is not None and not by_default:
            yield BUCKET_IGNORED.decide(
                _KNOB,
                requested=requested,
                effective=None,
                reason="overlap_grad_reduce is off, so each gradient buffer is one bucket",
                outcome=Outcome.REFUSED,
                edits=overlapped_reduction(c),
            )
        return
    requested = getattr(c.ddp, AT_WRAP, None) if requested is None else requested
    if requested is None:
        dp = c.data_parallel_size or 1
        yield BUCKET_DEFAULT.decide(
            _KNOB,
            requested=None,
            effective=default_bucket_size(dp),
            reason=f"Megatron-Core takes None for max({CORE_LEAST:,}, {CORE_PER_RANK:,} x {dp}) "
            "parameters",
            outcome=Outcome.NOTE,
        )
    try:
        chunks = bucketing(
            c.model,
            c.ddp,
            data_parallel_size=c.data_parallel_size or 1,
            overlap_param_gather_with_optimizer_step=bool(
                getattr(optimizer, "overlap_param_gather_with_optimizer_step", False)
            ),
        )
    except UncountableModel as cause:
        yield BUCKET_COUNT.decide(
            _KNOB,
            requested=None,
            effective=requested,
            reason=f"the number of buckets of this model is not known: {cause}",
            outcome=Outcome.NOTE,
        )
        return
    yield from _notes_on_chunks(c, optimizer, chunks, requested)


def _several_buckets(c: Context, optimizer: Any, first: ChunkBuckets) -> Edits:
    """What divides the first chunk into several buckets; empty where nothing does.

    A size is tried before it is proposed: a model with few large tensors has few buckets.
    """
    with_step = getattr(optimizer, WITH_STEP.partition(".")[2], False)
    edits = off(WITH_STEP)(c) if with_step else ()
    if edits and _divides(c, c.ddp.bucket_size):
        return edits
    parts = [FEWEST_BUCKETS, TARGET_BUCKETS]
    automatic = auto_bucket_size(first.parameters, c.replicas)
    if c.sets_data_parallel and _divides(c, automatic):
        return (*edits, Edit("comm_overlap.bucket_size", AUTO))
    sizes = [automatic, *(max(1, first.parameters // n) for n in parts)]
    size = next((size for size in sizes if _divides(c, size)), None)
    if size is None:
        return ()
    for key, number in (
        ("ddp.num_buckets", c.of_ddp("num_buckets")),
        ("megatron_lm.ddp_num_buckets", getattr(c.train, "ddp_num_buckets", None)),
    ):
        # A number of buckets excludes a size.
        if number is not None and not c.sets_data_parallel:
            return (*edits, Edit(key, max(FEWEST_BUCKETS, -(-first.parameters // size))))
    return (*edits, Edit(c.key(_KNOB), size))


def _divides(c: Context, size: int | None) -> bool:
    ddp = copy(c.ddp)
    ddp.bucket_size = size
    chunks = bucketing(c.model, ddp, data_parallel_size=c.data_parallel_size or 1)
    return chunks[0].collectives > 1


def _notes_on_chunks(
    c: Context, optimizer: Any, chunks: list[ChunkBuckets], bucket_size: int | None
) -> Iterator[Decision]:
    first, rest = chunks[0], chunks[1:]
    count = len(first.buckets)
    yield BUCKET_COUNT.decide(
        _KNOB,
        requested=None,
        effective=bucket_size,
        reason=f"{first.parameters:,} parameters per rank in the first chunk of the first stage "
        f"are reduced in {count} bucket{'s' if count != 1 else ''}",
        outcome=Outcome.NOTE,
    )
    if first.collectives <= 1:
        yield SINGLE_BUCKET.decide(
            "ddp.overlap_grad_reduce",
            requested=None,
            effective=True,
            reason="the first chunk's gradients are reduced in one piece, when the last one is "
            "ready: "
            + (first.uncut_because or f"its {first.parameters:,} parameters fit into one bucket"),
            outcome=Outcome.NOTE,
            edits=_several_buckets(c, optimizer, first),
        )
    if rest:
        yield FIRST_CHUNK_ONLY.decide(
            _KNOB,
            requested=None,
            effective=bucket_size,
            reason=f"the {len(rest)} other pipeline stages and chunks are not divided: each waits "
            "for its own last gradient",
            outcome=Outcome.NOTE,
        )
