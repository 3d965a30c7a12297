"""The bucket size: too large a bucket hides nothing; `"auto"` against sizes tried by hand."""

from __future__ import annotations

from typing import Any

from overlapkit.lab.measurements import Measured, Seen
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
    timed,
    variant,
)

SIZES: dict[str, int | str | None] = {
    "default": None,
    "auto": "auto",
    "1,000,000": 1_000_000,
    "500,000": 500_000,
    "150,000": 150_000,
}
"""Parameters. Megatron-Bridge's default, 134,217,728, makes one bucket of the lab's model."""

GPU_SIZES: dict[str, int | str | None] = {
    "default": None,
    "auto": "auto",
    "whole": 1_000_000_000,
    "40,000,000": 40_000_000,
    "10,000,000": 10_000_000,
}
"""The same for the model that trains on GPUs, which fills several buckets of the default size."""

ONE_BUCKET = (
    "Megatron-Bridge's default size makes one bucket of a small model, which hides nothing."
)
AUTO = 'bucket_size="auto" is within 5 % of the best size tried.'
SAME = "The bucket size changes no number."

HIDES_NOTHING = 0.10
"""Share of the communication: what chance and the profiler's edges may hide."""

WITHIN = 1.05


def blocks(setting: Setting) -> tuple[Block, ...]:
    """Both overlaps on, at several sizes."""
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
    asked = {"tp_comm_overlap": False, "overlap_grad_reduce": True, "overlap_param_gather": True}
    return {"comm_overlap": asked if size is None else {**asked, "bucket_size": size}}


def judge(seen: Seen, setting: Setting) -> list[Verdict]:
    """What one bucket hides, how good auto is, and the numbers."""
    variants = seen.variants("bucket")
    verdicts = [_one_bucket(variants["default"]), identical(list(variants.values()), SAME)]
    if setting.shaped:
        return [verdicts[0], _auto(variants), verdicts[1]]
    why = "without a slow link no size is better than another"
    return [verdicts[0], Verdict(AUTO, NOT_TESTABLE, why), verdicts[1]]


def _one_bucket(default: Measured) -> Verdict:
    buckets = sum(len(chunk) for chunk in default.ranks[0].buckets)
    if buckets != 1:
        why = f"the model fills {buckets} buckets of that size"
        return Verdict(ONE_BUCKET, NOT_TESTABLE, why)
    assert default.profile is not None
    overlap = default.profile.overlap or 0.0
    return Verdict(
        ONE_BUCKET,
        CONFIRMED if overlap < HIDES_NOTHING else NOT_CONFIRMED,
        f"one bucket of {default.ranks[0].buckets[0][0]:,} parameters; {overlap:.0%} of its "
        "communication is hidden",
    )


def _auto(variants: dict[str, Measured]) -> Verdict:
    auto = variants["auto"]
    best = min(variants.values(), key=lambda one: one.step)
    ratio = auto.step / best.step
    buckets = sum(len(chunk) for chunk in auto.ranks[0].buckets)
    return timed(
        AUTO,
        ratio <= WITHIN,
        f"auto makes {buckets} buckets and {auto.step * 1e3:.0f} ms a step; the best, {best.name}, "
        f"{best.step * 1e3:.0f} ms: {ratio:.2f} x",
        (auto, best),
    )


SCENARIO = Scenario(
    name="bucket",
    title="bucket size: one bucket hides nothing, many cost latency",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
