"""The wording of a comparison, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UnsetType

from overlapkit.explain.stack_document import configured_for
from overlapkit.output.numbers import ms_of_us, signed_ms_of_us
from overlapkit.trace.compare.document import (
    CompareCause,
    CompareDecision,
    CompareDocument,
    CompareExplanation,
)
from overlapkit.trace.compare.verdict import Verdict
from overlapkit.trace.measure.units import A_UNIT
from overlapkit.trace.text import PART_TITLES

VERDICTS: dict[Verdict, str] = {
    "slower": "Slower by more than",
    "faster": "Faster by more than",
    "same": "No change larger than",
    "unknown": "No verdict",
}

NO_DECISIONS = (
    "The configurations lead to the same decisions: no overlap setting explains the change."
)
NOTHING_EXPLAINED = "no part that it acts on has changed"


def headline(document: CompareDocument) -> str:
    """The change of the median step, and the verdict."""
    base, new = document.base, document.new
    what = f"Median {document.base.unit}" if document.has_steps else "Length"
    relative = "" if document.change_pct is None else f", {document.change_pct:+.1f} %"
    return (
        f"{what} {ms_of_us(base.step_us)} -> {ms_of_us(new.step_us)} ms "
        f"({signed_ms_of_us(document.change_us)} ms{relative}). "
        f"{verdict(document)}"
    )


def verdict(document: CompareDocument) -> str:
    """The verdict, and why there is none or why it does not hold."""
    if document.verdict == "unknown":
        return f"{VERDICTS['unknown']}: {'; '.join(document.verdict_reasons)}."
    if not document.verdict_holds:
        return f"{document.verdict.title()}, but {'; '.join(document.verdict_reasons)}."
    threshold = f"({ms_of_us(document.spread_us)} ms)"
    said = f"{VERDICTS[document.verdict]} the spread of the {document.base.unit}s {threshold}."
    if not document.by_spread:
        said = f"{VERDICTS[document.verdict]} 1 % {threshold}, by which equal runs can differ."
    return said


def differences(document: CompareDocument) -> list[str]:
    """What of the two jobs differs in size, and in the number of recorded steps."""
    base, new = document.base, document.new
    found = []
    for what, before, after in (
        ("GPU", base.gpu, new.gpu),
        ("World size", base.world_size, new.world_size),
        ("Data-parallel size", base.data_parallel_size, new.data_parallel_size),
        (f"Profiled {_counted(document)}", base.ranks, new.ranks),
    ):
        if before is not None and after is not None and before != after:
            found.append(f"{what} {before} -> {after}")
    if document.has_steps and base.steps != new.steps:
        found.append(f"{base.unit}s recorded: {base.steps} -> {new.steps}")
    return [f"{'; '.join(found)}."] if found else []


def _counted(document: CompareDocument) -> str:
    """What both runs have several of."""
    base, new = document.base.counted, document.new.counted
    return base if base == new else "ranks or GPUs"


def percent(value: float | None) -> str:
    """A change in percent; empty where the base is 0."""
    return "" if value is None else f"{value:+.1f}"


def title(document: CompareDocument) -> str:
    """What the page is about."""
    return f"What changed in the {whole(document)}"


def unit(document: CompareDocument) -> str:
    """What the times are of."""
    if document.has_steps:
        return f"ms {A_UNIT[document.base.unit]}"
    some = document.base.steps_from or document.new.steps_from
    return "ms" if some else "ms of the trace"


def whole(document: CompareDocument) -> str:
    """What the parts add up to."""
    return document.base.unit if document.has_steps else "trace"


def configurations(document: CompareDocument) -> list[str]:
    """The versions that the configurations are for; none without configurations."""
    if isinstance(document.stacks, UnsetType):
        return []
    before, after = (configured_for(s) for s in (document.stacks.base, document.stacks.new))
    if before == after:
        return [f"Configurations: {before}"]
    return [f"Configuration of base: {before}", f"Configuration of new: {after}"]


def decisions(document: CompareDocument) -> Sequence[CompareDecision] | None:
    """What is decided differently; None without configurations."""
    return document.decisions if isinstance(document.decisions, list) else None


def change(decision: CompareDecision) -> str:
    """Both values, and what caused the change unless it is the knob itself."""
    by = ", ".join(decision.by)
    return f"{decision.change} (by {by})" if by else decision.change


def by_knob(of: Sequence[CompareDecision]) -> dict[str, CompareDecision]:
    """The decisions by what is decided."""
    return {decision.knob: decision for decision in of}


def of_cause(
    cause: CompareCause, decided: Mapping[str, CompareDecision]
) -> Sequence[CompareDecision]:
    """The decisions of a cause; one of several that read the same, as where a flag sets two."""
    found = (decided[knob] for knob in cause.decisions)
    return list({(d.name, d.change): d for d in reversed(list(found))}.values())[::-1]


def causes(document: CompareDocument) -> Sequence[CompareCause]:
    """The decisions by their cause; none without configurations."""
    return document.causes if isinstance(document.causes, list) else []


def explanation(explained: CompareExplanation) -> str:
    """A part that changed, and its change."""
    where = f"{explained.dimension} " if explained.dimension else ""
    if explained.operations:
        where += f"{' and '.join(explained.operations)}, "
    return f"{where}{PART_TITLES[explained.part]} {signed_ms_of_us(explained.change_us)} ms"
