"""How large a data-parallel gradient bucket should be: the default, and `"auto"`.

A bucket is the unit of overlap. Its reduce-scatter starts when its last gradient is ready, so the
bucket that becomes ready last, with the first layers' gradients, has no backward left to hide
under: with `n` equal buckets about `1/n` of the communication stays exposed, and with one bucket
all of it. Each bucket costs a latency that grows with the number of ranks, so `n` has a limit too.
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
"""What auto aims at: 1/16 of the communication is about the share that stays exposed."""

FEWEST_BUCKETS = 4
"""What auto keeps to even where latency would ask for larger buckets: fewer hide too little."""

SMALLEST_BUCKET = 256 * 1024
"""Parameters. 1 MiB of fp32 gradients; below this a message costs mostly latency on any link."""

LATENCY_PARAMETERS_PER_RANK = 128 * 1024
"""Parameters per data-parallel rank below which a ring is latency-bound.

A ring over `d` ranks sends `d - 1` messages of `bucket / d`. At 10 us a hop on a 400 Gbit/s NIC
(50 GB/s, as in the H100 reference system) latency and transfer are equal at 500 kB, which is
128 Ki fp32 gradients. Megatron-Core's own default allows for the same effect, with 1,000,000
parameters per rank.
"""


def is_bucket_size(value: object) -> bool:
    """Whether a number can be a bucket's size, in parameters."""
    return type(value) is int and value >= LEAST_BUCKET_SIZE


def auto_bucket_size(parameters: int, data_parallel_size: int) -> int:
    """The bucket size that `bucket_size="auto"` stands for.

    `parameters / 16`, but at least what keeps a ring over the data-parallel ranks from being ruled
    by latency, and at most Megatron-Bridge's default. Latency gives way where it would leave fewer
    than 4 buckets: some overlap at a worse bandwidth beats none.

    Args:
        parameters: trainable parameters that one rank's gradient buffer holds (for a pipeline, the
            first stage's first model chunk: Megatron-Core puts no other one into buckets).
        data_parallel_size: ranks that share the reduction, at least 1.

    Returns:
        Parameters per bucket, between `SMALLEST_BUCKET` and `BRIDGE_BUCKET_SIZE`.
    """
    unhurried = max(
        ceil(parameters / TARGET_BUCKETS), LATENCY_PARAMETERS_PER_RANK * data_parallel_size
    )
    several = ceil(parameters / FEWEST_BUCKETS)
    return min(max(min(unhurried, several), SMALLEST_BUCKET), BRIDGE_BUCKET_SIZE)
