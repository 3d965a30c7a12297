"""The bucket size: too large a bucket hides nothing; `"auto"` is compared with other sizes."""

from __future__ import annotations

from typing import Any

from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    CONFIRMED,
    DISTRIBUTED_OPTIMIZER,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Verdict,
    identical,
    layered,
    one_microbatch,
    variant,
)
from overlapkit.lab.timing import timed

SIZES: dict[str, int | str | None] = {
    "default": None,
    "auto": "auto",
    "1,000,000": 1_000_000,
    "500,000": 500_000,
    "150,000": 150_000,
}
"""Parameters. Megatron-Bridge's default, 134,217,728, is larger than the lab's model."""

GPU_SIZES: dict[str, int | str | None] = {
    "default": None,
    "auto": "auto",
    "whole": 1_000_000_000,
    "40,000,000": 40_000_000,
    "10,000,000": 10_000_000,
}
"""The same for the model that trains on GPUs, which is larger than the default bucket."""

ONE_BUCKET = (
    "With Megatron-Bridge's default size, a small model is one bucket, which hides nothing."
)
AUTO = 'bucket_size="auto" is within 5 % of the best size tried.'
SAME = "The bucket size does not change the results."

HIDES_NOTHING = 0.10
"""Share of communication that may be hidden by chance, at the edges of the profile."""

WITHIN = 1.05


def blocks(setting: Setting) -> tuple[Block, ...]:
    """Both overlaps, with several bucket sizes."""
    rounds, steps = setting.turns(3, 3)
    ranks = setting.ranks or 2
    common = layered(DISTRIBUTED_OPTIMIZER, one_microbatch(setting, ranks))
    sizes = GPU_SIZES if setting.device == "cuda" else SIZES
    return (
        Block(
            name="bucket",
            ranks=ranks,
            variants=tuple(
                variant(name.replace(",", "_"), setting, common, _both(size))
                for name, size in sizes.items()
            ),
            rounds=rounds,
            steps=steps,
            link_of="default",
        ),
    )


def _both(size: int | str | None) -> dict[str, dict[str, Any]]:
    knobs = {"tp_comm_overlap": False, "overlap_grad_reduce": True, "overlap_param_gather": True}
    return {"comm_overlap": knobs if size is None else {**knobs, "bucket_size": size}}


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """What one bucket hides, how good auto is, and the results."""
    variants = observed.variants("bucket")
    verdicts = [_one_bucket(variants["default"]), identical(list(variants.values()), SAME)]
    if setting.shaped:
        return [verdicts[0], _auto(variants), verdicts[1]]
    why = "without a slow link, no size is better than another"
    return [verdicts[0], Verdict(AUTO, NOT_TESTABLE, why), verdicts[1]]


def _one_bucket(default: MeasuredVariant) -> Verdict:
    buckets = sum(len(chunk) for chunk in default.ranks[0].buckets)
    if buckets != 1:
        why = f"with that size the model has {buckets} buckets"
        return Verdict(ONE_BUCKET, NOT_TESTABLE, why)
    assert default.profile is not None
    overlap = default.profile.overlap or 0.0
    return Verdict(
        ONE_BUCKET,
        CONFIRMED if overlap < HIDES_NOTHING else NOT_CONFIRMED,
        f"one bucket of {default.ranks[0].buckets[0][0]:,} parameters; {100 * overlap:.0f} % of "
        "the communication is hidden",
    )


def _auto(variants: dict[str, MeasuredVariant]) -> Verdict:
    auto = variants["auto"]
    best = min(variants.values(), key=lambda one: one.step)
    ratio = auto.step / best.step
    buckets = sum(len(chunk) for chunk in auto.ranks[0].buckets)
    noise = auto.spread + best.spread
    return timed(
        AUTO,
        f"auto: {buckets} buckets, {auto.step * 1e3:.0f} ms a step; best: {best.name}, "
        f"{best.step * 1e3:.0f} ms; ratio {ratio:.2f} x; the two spreads add up to "
        f"{noise * 1e3:.0f} ms",
        (auto, best),
        holds=ratio <= WITHIN,
        # The best of several is measured too short, and turns differ more than steps of a turn.
        refuted=auto.step - WITHIN * best.step > 2 * noise,
    )


SCENARIO = Scenario(
    name="bucket",
    title="bucket size: a single bucket hides nothing, many small ones add latency",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
