"""What of an estimate rests on measured rates, as the plan's document has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.plan.rates.measured import Kind


class PlanMeasured(Struct, frozen=True, kw_only=True):
    """How much of the step with overlap rests on measured rates."""

    rates: Annotated[str, Meta(description="the file of `--rates`")]
    share: Annotated[float, Meta(description="share of the step, from 0 to 1")]
    shares: Annotated[
        dict[str, float],
        Meta(
            description="the same by kind: `gemms`, `attention`, `memory` and `collectives`, as "
            "far as the step rests on them"
        ),
    ]


def measured_document(rates: str | None, shares: Mapping[Kind, float]) -> PlanMeasured | None:
    """What rests on a file of rates; None without one."""
    if rates is None:
        return None
    return PlanMeasured(
        rates=rates,
        share=round(sum(shares.values()), 3),
        shares={kind: round(share, 3) for kind, share in shares.items()},
    )
