"""The gradient buckets in the JSON document of `overlapkit explain`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.explain.buckets import (
    BucketExchange,
    Buckets,
    ChunkExchange,
    HiddenBy,
    StageExchange,
    bucket_summary,
)


class ExplainBucket(Struct, frozen=True, kw_only=True):
    """One gradient bucket: what is reduced, and gathered, in one piece."""

    parameters: Annotated[int, Meta(description="elements of its tensors on one rank")]
    elements: Annotated[int, Meta(description="elements that are reduced, including padding")]
    ranks: Annotated[int, Meta(description="ranks that reduce it together; 1: no communication")]
    reduced_bytes: Annotated[int, Meta(description="of its gradients on one rank")]
    gathered_bytes: Annotated[
        int | None,
        Meta(
            description="of its parameters; 0 where they are not gathered, `null` where the size "
            "is not known"
        ),
    ]
    first: Annotated[str, Meta(description="the parameter whose gradient comes first")]
    last: Annotated[
        str, Meta(description="the one whose gradient comes last, which makes the bucket ready")
    ]
    expert: Annotated[bool, Meta(description="whether it contains experts' parameters")]
    hidden_by: Annotated[
        HiddenBy | None,
        Meta(
            description="what still computes when it is ready, and can hide its reduction; `null`: "
            "nothing"
        ),
    ]


class ExplainPlace(Struct, frozen=True, kw_only=True):
    """A model chunk of a pipeline stage."""

    stage: Annotated[int, Meta(description="pipeline stage, from 0")]
    chunk: Annotated[int, Meta(description="model chunk within the stage, from 0")]


class ExplainChunkBuckets(Struct, frozen=True, kw_only=True):
    """The buckets of model chunks that have equal ones."""

    places: Annotated[
        list[ExplainPlace], Meta(description="which stages and model chunks these are")
    ]
    bucket_size: Annotated[
        int | None,
        Meta(description="parameters at which a bucket is closed; `null`: not divided"),
    ]
    not_divided_because: Annotated[str | None, Meta(description="why not")]
    reduced_bytes: Annotated[int, Meta(description="of all gradients of one chunk on one rank")]
    exposed_bytes: Annotated[
        int, Meta(description="of the gradients whose reduction nothing is left to hide")
    ]
    buckets: Annotated[
        list[ExplainBucket], Meta(description="in the order in which they become ready")
    ]


class ExplainStageBuckets(Struct, frozen=True, kw_only=True):
    """What each GPU of some pipeline stages exchanges in a step, over all its model chunks."""

    stages: Annotated[list[int], Meta(description="those that are alike, from 0")]
    buckets: Annotated[int, Meta(description="of one GPU, over all its model chunks")]
    parameters: Annotated[int, Meta(description="that one GPU holds")]
    reduced_bytes: Annotated[
        int, Meta(description="of gradients, with padding, that one GPU hands to the reduction")
    ]
    exposed_bytes: Annotated[
        int, Meta(description="of the gradients whose reduction nothing is left to hide")
    ]


class ExplainBuckets(Struct, frozen=True, kw_only=True):
    """The gradient buckets of every pipeline stage and model chunk."""

    summary: Annotated[
        str,
        Meta(description="the first stage's in one line; or why there are none, or not known"),
    ]
    chunks: Annotated[
        list[ExplainChunkBuckets] | None,
        Meta(description="equal chunks once; `null` where the buckets are not known or not used"),
    ]
    stages: Annotated[
        list[ExplainStageBuckets] | None,
        Meta(
            description="the totals of each pipeline stage, equal stages once; `null` where "
            "`chunks` is"
        ),
    ] = None


def buckets_document(buckets: Buckets | str) -> ExplainBuckets:
    """The buckets of a run as a part of the document."""
    if isinstance(buckets, str):
        return ExplainBuckets(summary=buckets, chunks=None)
    return ExplainBuckets(
        summary=bucket_summary(buckets),
        chunks=[_chunk(chunk) for chunk in buckets.chunks],
        stages=[_stage(stage) for stage in buckets.by_stage],
    )


def _stage(stage: StageExchange) -> ExplainStageBuckets:
    return ExplainStageBuckets(
        stages=list(stage.stages),
        buckets=stage.buckets,
        parameters=stage.parameters,
        reduced_bytes=stage.reduced_bytes,
        exposed_bytes=stage.exposed_bytes,
    )


def _chunk(chunk: ChunkExchange) -> ExplainChunkBuckets:
    return ExplainChunkBuckets(
        places=[ExplainPlace(stage=stage, chunk=number) for stage, number in chunk.places],
        bucket_size=chunk.bucket_size,
        not_divided_because=chunk.uncut_because,
        reduced_bytes=chunk.reduced_bytes,
        exposed_bytes=chunk.exposed_bytes,
        buckets=[_bucket(bucket) for bucket in chunk.buckets],
    )


def _bucket(bucket: BucketExchange) -> ExplainBucket:
    return ExplainBucket(
        parameters=bucket.parameters,
        elements=bucket.elements,
        ranks=bucket.ranks,
        reduced_bytes=bucket.reduced_bytes,
        gathered_bytes=bucket.gathered_bytes,
        first=bucket.first,
        last=bucket.last,
        expert=bucket.expert,
        hidden_by=bucket.hidden_by,
    )
