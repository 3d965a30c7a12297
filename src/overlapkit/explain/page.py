"""A report and a difference as one self-contained page."""

from __future__ import annotations

from megatron.bridge.models.parameter_count import UncountableModel
from megatron.bridge.training.bucketing import ChunkBuckets, bucketing
from megatron.bridge.training.rules.buckets import BUCKET_COUNT
from overlapkit.explain import difference_text, text
from overlapkit.explain.difference import Difference
from overlapkit.explain.report import Report
from overlapkit.output.html import environment
from overlapkit.output.numbers import thousands
from overlapkit.output.svg import Piece, stacked

COLORS = (("own", "dense parameters"), ("expert", "expert parameters"))
"""Color classes of the buckets, and what they stand for."""

BARS = 16
"""Model chunks that are drawn."""


def explain_page(report: Report) -> str:
    """The page of `overlapkit explain`: the verdict, the findings, then each dimension."""
    chunks = _chunks(report)
    return (
        environment("overlapkit.explain")
        .get_template("explain.html")
        .render(
            report=report,
            text=text,
            bars=_bars(chunks[:BARS]),
            hidden_bars=len(chunks[BARS:]),
            colors=[each for each in COLORS if each[0] == "own" or _has_experts(chunks)],
        )
    )


def difference_page(difference: Difference) -> str:
    """The page of `overlapkit explain A B`: each cause and what it changes."""
    return (
        environment("overlapkit.explain")
        .get_template("difference.html")
        .render(difference=difference, text=text, words=difference_text)
    )


def _chunks(report: Report) -> list[ChunkBuckets]:
    """The buckets of every model chunk; none where the rules did not count them."""
    if isinstance(report.buckets, str) or all(d.rule != BUCKET_COUNT.id for d in report.decisions):
        return []
    run = report.run
    try:
        return bucketing(
            run.model,
            run.ddp,
            data_parallel_size=report.data_parallel_size,
            overlap_param_gather_with_optimizer_step=bool(
                run.optimizer.overlap_param_gather_with_optimizer_step
            ),
        )
    except UncountableModel:
        return []


def _has_experts(chunks: list[ChunkBuckets]) -> bool:
    return any(bucket.expert for chunk in chunks for bucket in chunk.buckets)


def _bars(chunks: list[ChunkBuckets]) -> list[tuple[str, list[Piece], str]]:
    """Each chunk as a bar of its buckets: name, pieces, number of buckets."""
    longest = max((sum(b.size for b in chunk.buckets) for chunk in chunks), default=0)
    several = len({chunk.vp_stage for chunk in chunks}) > 1
    return [
        (
            f"stage {chunk.pp_rank}" + (f", chunk {chunk.vp_stage}" if several else ""),
            stacked(
                [
                    (
                        "expert" if bucket.expert else "own",
                        f"{thousands(bucket.parameters)} parameters",
                        bucket.size,
                    )
                    for bucket in chunk.buckets
                ],
                longest,
            ),
            f"{len(chunk.buckets)} bucket{'s' if len(chunk.buckets) != 1 else ''}",
        )
        for chunk in chunks
    ]
