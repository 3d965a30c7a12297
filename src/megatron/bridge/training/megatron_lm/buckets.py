"""The size of a bucket, as Megatron-LM's trainer chooses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.models.parameter_count import UncountableModel
from megatron.bridge.training.bucketing import (
    AT_WRAP,
    CORE_LEAST,
    CORE_PER_RANK,
    bucketing,
    default_bucket_size,
)
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import REMOVED, Edit, either
from megatron.bridge.training.megatron_lm.request import MegatronLmRequest, stops
from megatron.bridge.training.rules.context import Context, fsdp_switch

BUCKETS_ASKED = rule(
    "lm.bucket-number",
    Dimension.DP,
    claim="--ddp-num-buckets N, with N of 1 or more, sets the bucket size to a rank's parameters "
    "divided by N. --ddp-bucket-size and --ddp-num-buckets exclude each other.",
    remedy="pass only one of --ddp-bucket-size and --ddp-num-buckets",
)
BUCKET_SIZE = rule(
    "lm.bucket-default",
    Dimension.DP,
    claim=f"Without --ddp-bucket-size, Megatron-LM's trainer takes max({CORE_LEAST:,}, "
    f"{CORE_PER_RANK:,} x DP x CP) parameters for a bucket.",
    source="Megatron-LM's training.py",
)


_ALONE = (Edit("megatron_lm.ddp_num_buckets", REMOVED),)


def bucket_checks(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    """The size of a bucket; it is set on ddp, in place."""
    number, knob = request.ddp_num_buckets, "ddp.bucket_size"
    if number is None:
        yield from _default_bucket_size(c)
        return
    if run.ddp.bucket_size is not None:
        yield BUCKETS_ASKED.error(
            knob,
            run.ddp.bucket_size,
            stops(f"--ddp-num-buckets {number} is passed too"),
            either(_ALONE, "omit --ddp-bucket-size"),
            _ALONE,
        )
        return
    if number < 1:
        yield BUCKETS_ASKED.error(
            knob,
            run.ddp.bucket_size,
            stops(f"--ddp-num-buckets {number}"),
            either(_ALONE, "make it 1 or more"),
            _ALONE,
        )
        return
    try:
        chunks = bucketing(c.model, run.ddp, data_parallel_size=c.data_parallel_size or 1)
    except UncountableModel as cause:
        yield BUCKETS_ASKED.decide(
            knob,
            requested=None,
            effective=None,
            reason=f"--ddp-num-buckets {number}: the size of a bucket is not known: {cause}",
            outcome=Outcome.NOTE,
        )
        return
    parameters = sum(chunk.parameters for chunk in chunks if chunk.pp_rank == 0)
    run.ddp.bucket_size = max(1, parameters // number)
    yield BUCKETS_ASKED.decide(
        knob,
        requested=None,
        effective=run.ddp.bucket_size,
        reason=f"{parameters:,} parameters on a rank of the first stage, divided by "
        f"--ddp-num-buckets {number}",
        outcome=Outcome.NOTE,
    )


def _default_bucket_size(c: Context) -> Iterator[Decision]:
    """What stands for None in Megatron-LM's trainer; kept on ddp for bucketing."""
    ddp = c.ddp
    if ddp.bucket_size is not None or not ddp.overlap_grad_reduce or fsdp_switch(ddp) is not None:
        return
    if c.replicas == 1:
        return
    dp, cp = c.data_parallel_size or 1, c.of_model("context_parallel_size") or 1
    size = default_bucket_size(c.replicas)
    setattr(ddp, AT_WRAP, size)
    yield BUCKET_SIZE.decide(
        "ddp.bucket_size",
        requested=None,
        effective=size,
        reason=f"without --ddp-bucket-size Megatron-LM takes max({CORE_LEAST:,}, "
        f"{CORE_PER_RANK:,} x {dp * cp}) parameters, where DP x CP is {dp} x {cp}",
        outcome=Outcome.NOTE,
    )
