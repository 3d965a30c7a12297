"""The bucket size that Megatron-Bridge hands to Megatron-Core where the configuration has none.

Since 0.5.1 Megatron-Bridge wraps the model with Megatron-LM's functions, which take a bucket size
from ddp.num_buckets, or from all ranks that reduce together.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.models.parameter_count import UncountableModel
from megatron.bridge.training.bucketing import (
    AT_WRAP,
    CORE_LEAST,
    CORE_PER_RANK,
    bucketing,
    default_bucket_size,
)
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.versions import Range

_SINCE = (Range("bridge", since="0.5.1"),)

DEFAULT_COUNTS_CP = rule(
    "bridge.bucket-default",
    Dimension.DP,
    claim=f"With overlap_grad_reduce on, bucket_size None means max({CORE_LEAST:,}, "
    f"{CORE_PER_RANK:,} x data-parallel size x CP) parameters: context-parallel ranks count too.",
    versions=_SINCE,
    source="Megatron-LM megatron/training/models/dist_utils.py",
)
NUM_BUCKETS = rule(
    "bridge.num-buckets",
    Dimension.DP,
    claim="ddp.num_buckets makes a bucket of the parameters of a rank, divided by it, where "
    "overlap_grad_reduce is on and there is no bucket_size.",
    versions=_SINCE,
    source="Megatron-LM megatron/training/models/dist_utils.py",
)

_KNOB = "ddp.bucket_size"


def bucket_size_at_wrap(c: Context) -> Iterator[Decision]:
    """What stands for a bucket size of None when the model is wrapped; kept on ddp for bucketing.

    ddp.bucket_size itself stays None, as it does in Megatron-Bridge.
    """
    if c.ddp.bucket_size is not None or not c.ddp.overlap_grad_reduce:
        return
    if c.fsdp is not None or c.replicas == 1:
        return
    number = c.of_ddp("num_buckets")
    if isinstance(number, int) and number > 0 and NUM_BUCKETS.holds(c.stack):
        yield from _divided(c, number)
    elif DEFAULT_COUNTS_CP.holds(c.stack):
        size = default_bucket_size(c.replicas)
        setattr(c.ddp, AT_WRAP, size)
        yield DEFAULT_COUNTS_CP.decide(
            _KNOB,
            requested=None,
            effective=size,
            reason=f"bucket_size is not set: max({CORE_LEAST:,}, {CORE_PER_RANK:,} x {c.replicas}) "
            "parameters",
            outcome=Outcome.NOTE,
        )


def _divided(c: Context, number: int) -> Iterator[Decision]:
    try:
        chunks = bucketing(c.model, c.ddp, data_parallel_size=c.data_parallel_size or 1)
    except UncountableModel as cause:
        size, reason = None, f"ddp.num_buckets is {number}; the size is not known: {cause}"
    else:
        parameters = sum(chunk.parameters for chunk in chunks if chunk.pp_rank == 0)
        size = max(1, parameters // number)
        setattr(c.ddp, AT_WRAP, size)
        reason = (
            f"{parameters:,} parameters on a rank of the first stage, divided by ddp.num_buckets "
            f"{number}"
        )
    yield NUM_BUCKETS.decide(
        _KNOB, requested=None, effective=size, reason=reason, outcome=Outcome.NOTE
    )
