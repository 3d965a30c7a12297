"""Into how many buckets Megatron-Core cuts the gradients, and what that leaves to overlap.

Facts of megatron-core 0.16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.models.parameter_count import UncountableModel
from megatron.bridge.training.bucketing import (
    CORE_LEAST,
    CORE_PER_RANK,
    bucketing,
    default_bucket_size,
)
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.rules.context import Context, fsdp_switch

BUCKET_DEFAULT = rule(
    "core.bucket-default",
    Dimension.DP,
    claim=f"bucket_size None with overlap_grad_reduce on becomes max({CORE_LEAST:,}, "
    f"{CORE_PER_RANK:,} x data-parallel size) parameters.",
)
BUCKET_IGNORED = rule(
    "core.bucket-ignored",
    Dimension.DP,
    claim="bucket_size is ignored while overlap_grad_reduce is off: there is one bucket.",
    remedy="set ddp.overlap_grad_reduce=true, and leave overlap_grad_reduce of comm_overlap unset",
)
FIRST_CHUNK_ONLY = rule(
    "core.first-chunk-only",
    Dimension.DP,
    claim="Only the first model chunk of the first pipeline stage is cut by bucket_size; in every "
    "other stage and chunk the dense gradients are one bucket (expert and FP8 ones another).",
)
BUCKET_COUNT = rule(
    "core.bucket-count",
    Dimension.DP,
    claim="A bucket is closed once it holds bucket_size parameters, counted from the last layer "
    "back; expert parameters have buckets of their own.",
)
SINGLE_BUCKET = rule(
    "core.single-bucket",
    Dimension.DP,
    claim="Where a whole model chunk fits into one bucket, overlap_grad_reduce hides nothing: the "
    "one reduction starts after the last gradient.",
    remedy="set comm_overlap.bucket_size=auto, or one well below the parameters per rank",
)


def bucket_consequences(c: Context, optimizer: Any) -> Iterator[Decision]:
    """Notes on the buckets that a run will have; a refusal where a size is ignored."""
    knob, asked = "ddp.bucket_size", getattr(c.ddp, "bucket_size", None)
    if fsdp_switch(c.ddp) is not None or c.replicas == 1:
        return
    if not c.ddp.overlap_grad_reduce:
        if asked is not None:
            yield BUCKET_IGNORED.decide(
                knob,
                requested=asked,
                effective=None,
                reason="overlap_grad_reduce is off, so each gradient buffer is one bucket",
                outcome=Outcome.REFUSED,
            )
        return
    if asked is None:
        dp = c.data_parallel_size or 1
        yield BUCKET_DEFAULT.decide(
            knob,
            requested=None,
            effective=default_bucket_size(dp),
            reason=f"None is max({CORE_LEAST:,}, {CORE_PER_RANK:,} x {dp}) parameters to "
            "Megatron-Core",
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
            knob,
            requested=None,
            effective=asked,
            reason=f"how many buckets this model gets is not known: {cause}",
            outcome=Outcome.NOTE,
        )
        return
    first, rest = chunks[0], chunks[1:]
    count = len(first.buckets)
    yield BUCKET_COUNT.decide(
        knob,
        requested=None,
        effective=asked,
        reason=f"{first.parameters:,} parameters per rank in the first chunk of the first stage "
        f"are reduced in {count} bucket{'s' if count != 1 else ''}",
        outcome=Outcome.NOTE,
    )
    if first.collectives <= 1:
        yield SINGLE_BUCKET.decide(
            "ddp.overlap_grad_reduce",
            requested=None,
            effective=True,
            reason="the first chunk's gradients travel in one piece, after the last one is ready: "
            + (first.uncut_because or f"its {first.parameters:,} parameters fit into one bucket"),
            outcome=Outcome.NOTE,
            remedy=SINGLE_BUCKET.remedy,
        )
    if rest:
        yield FIRST_CHUNK_ONLY.decide(
            knob,
            requested=None,
            effective=asked,
            reason=f"the {len(rest)} other pipeline stages and chunks are not cut: each waits for "
            "its own last gradient",
            outcome=Outcome.NOTE,
        )
