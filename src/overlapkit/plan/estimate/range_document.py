"""The range of an estimate, as the plan's document has it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.plan.estimate.costs import StepSummary


class PlanRange(Struct, frozen=True, kw_only=True):
    """Where measured throughput is to be expected: what published layouts of a class measured,
    each estimated with rates that it was not fitted to."""

    compared: Annotated[
        str, Meta(description="the class, such as `h100 bf16 dense`: GPU, precision and kind")
    ]
    own_class: Annotated[
        bool,
        Meta(
            description="`false` where the estimate's own class has too few published layouts, so "
            "that those of the GPU's generation count"
        ),
    ]
    layouts: Annotated[int, Meta(description="published layouts of that class")]
    least_tokens_per_s_per_gpu: Annotated[
        int, Meta(description="tokens/s/GPU that nine of ten layouts exceed, with overlap")
    ]
    most_tokens_per_s_per_gpu: Annotated[
        int, Meta(description="tokens/s/GPU that nine of ten layouts stay below, with overlap")
    ]


def range_document(of: StepSummary) -> PlanRange | None:
    """The range of an estimate; None where nothing of its kind was ever compared."""
    if of.range is None:
        return None
    least, most = of.range.tokens(of.tokens_per_s_per_gpu)
    return PlanRange(
        compared=of.range.compared,
        own_class=of.range.own,
        layouts=of.range.layouts,
        least_tokens_per_s_per_gpu=round(least),
        most_tokens_per_s_per_gpu=round(most),
    )
