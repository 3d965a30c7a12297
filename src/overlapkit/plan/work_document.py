"""The derivation of a figure as a part of the JSON document: `work`, with --show-work."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.plan.figure import Figure, derivation


class PlanFigure(Struct, frozen=True, kw_only=True):
    """A number with its derivation."""

    value: Annotated[float, Meta(description="in `unit`")]
    unit: Annotated[str, Meta(description="empty for a plain number")]
    formula: Annotated[str, Meta(description="in the names of `inputs`; empty for a fact")]
    inputs: Annotated[list[str], Meta(description="names of the figures in the formula")]
    source: Annotated[str, Meta(description="where the fact, or the formula, comes from")]


class PlanDerivation(Struct, frozen=True, kw_only=True):
    """One result, and everything that it was computed from."""

    name: Annotated[str, Meta(description="of the result, a key of `figures`")]
    figures: Annotated[
        dict[str, PlanFigure],
        Meta(
            description="by name; figures that share a name and differ in their derivation are "
            "numbered, such as `tokens #2`"
        ),
    ]


def derivation_document(figure: Figure) -> PlanDerivation:
    """A figure and all that it was computed from, each once."""
    derived = derivation(figure)
    return PlanDerivation(
        name=next(iter(derived)),
        figures={
            name: PlanFigure(
                value=one.value,
                unit=one.unit,
                formula=one.formula,
                inputs=inputs,
                source=one.source,
            )
            for name, (one, inputs) in derived.items()
        },
    )
