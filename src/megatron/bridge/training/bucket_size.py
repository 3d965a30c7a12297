"""How large a data-parallel gradient bucket should be: the default, and `"auto"`.

A bucket is the unit of overlap. Its reduce-scatter starts when its last gradient is ready. The last
bucket, with the gradients of the first layers, has no backward left to hide under: with `n` equal
buckets about `1/n` of the communication stays exposed, and with one bucket all of it. Each bucket
costs a latency that grows with the number of ranks, so `n` is limited.
"""

from __future__ import annotations

from math import ceil

BRIDGE_BUCKET_SIZE = 128 * 1024 * 1024
"""Megatron-Bridge's default, in parameters (not bytes), tuned for models that fill large GPUs."""

AUTO = "auto"
"""The request for `auto_bucket_size`."""

LEAST_BUCKET_SIZE = 1
"""Parameters of the smallest bucket that can be requested: each tensor is then a bucket."""

TARGET_BUCKETS = 16
"""Number of buckets that auto aims at: about 1/16 of the communication then stays exposed."""

FEWEST_BUCKETS = 4
"""Fewest buckets of auto, even where latency favors larger ones: fewer hide too little."""

SMALLEST_BUCKET = 256 * 1024
"""Parameters: 1 MiB of fp32 gradients. Below this, latency dominates a message on any link."""

LATENCY_PARAMETERS_PER_RANK = 128 * 1024
"""Parameters per data-parallel rank below which a ring is latency-bound.

A ring over `d` ranks sends `d - 1` messages of `bucket / d`. At 10 us per hop on a 400 Gbit/s NIC
(50 GB/s, as in the H100 reference system), latency and transfer take the same time at 500 kB, which
is 128 Ki fp32 gradients. Megatron-Core's own default accounts for the same effect, with 1,000,000
parameters per rank.
"""


def is_bucket_size(value: object) -> bool:
    """Whether a number can be a bucket's size, in parameters."""
    return type(value) is int and value >= LEAST_BUCKET_SIZE


def auto_bucket_size(parameters: int, data_parallel_size: int) -> int:
    """The bucket size that `bucket_size="auto"` stands for.

    It is `parameters / 16`, but large enough that latency does not dominate a ring over the
    data-parallel ranks, and at most Megatron-Bridge's default. There are at least 4 buckets
    whatever the latency: some overlap at a lower bandwidth is better than none.

    Args:
        parameters: trainable parameters in one rank's gradient buffer (for a pipeline, those of the
            first stage's first model chunk: Megatron-Core divides no other chunk into buckets).
        data_parallel_size: ranks that share the reduction, at least 1.

    Returns:
        Parameters per bucket, between `SMALLEST_BUCKET` and `BRIDGE_BUCKET_SIZE`.
    """
    unhurried = max(
        ceil(parameters / TARGET_BUCKETS), LATENCY_PARAMETERS_PER_RANK * data_parallel_size
    )
    several = ceil(parameters / FEWEST_BUCKETS)
    return min(max(min(unhurried, several), SMALLEST_BUCKET), BRIDGE_BUCKET_SIZE)
