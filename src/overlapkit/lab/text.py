"""The lab's document in words, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET

from overlapkit.lab.document import LabBlock, LabMachine, LabScenario
from overlapkit.lab.variant_document import LabVariant, present
from overlapkit.output.numbers import ms_of_ms

OUTCOMES = ("confirmed", "not confirmed", "not testable here")


@dataclass(frozen=True)
class Summary:
    """How a scenario changes the step, from the first timed variant of a block to the fastest.

    Attributes:
        first: name of the variant that the others are compared with.
        best: name of the fastest.
        before_ms, after_ms: their median steps.
        ideal_ms: the shortest step that overlap could give; None without a profile.
    """

    first: str
    best: str
    before_ms: float
    after_ms: float
    ideal_ms: float | None

    @property
    def sentence(self) -> str:
        """In words."""
        if self.first == self.best:
            return f"{self.first}, the first, is the fastest: {ms_of_ms(self.before_ms)} ms a step"
        text = (
            f"{self.first} {ms_of_ms(self.before_ms)} ms, "
            f"{self.best} {ms_of_ms(self.after_ms)} ms a step: "
            f"{ratio(self.after_ms, self.before_ms)}"
        )
        return text if self.ideal_ms is None else f"{text} (ideal {ms_of_ms(self.ideal_ms)} ms)"


def summary(scenario: LabScenario) -> Summary | None:
    """Of the scenario's first timed block; None where no steps were timed."""
    for block in scenario.blocks:
        timed = [variant for variant in block.variants if variant.was_timed]
        if len(timed) > 1:
            first, best = timed[0], min(timed, key=lambda variant: present(variant.step_ms))
            return Summary(
                first=first.name,
                best=best.name,
                before_ms=present(first.step_ms),
                after_ms=present(best.step_ms),
                ideal_ms=block.ideal_ms,
            )
    return None


def ratio(value: float, reference: float) -> str:
    """How many times `reference` a value is."""
    return f"{value / reference:.2f} x" if reference else "-"


def outcomes(scenarios: Sequence[LabScenario]) -> dict[str, int]:
    """Number of claims by outcome; outcomes that no claim has are omitted."""
    claims = [claim.outcome for scenario in scenarios for claim in scenario.claims]
    return {outcome: claims.count(outcome) for outcome in OUTCOMES if outcome in claims}


def verdict(counts: dict[str, int]) -> str:
    """The outcomes of all claims in one line.

    Args:
        counts: what `outcomes` returns.
    """
    total = sum(counts.values())
    if list(counts) == ["confirmed"]:
        return f"all {total} claims confirmed" if total > 1 else "the claim is confirmed"
    parts = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{total} claim{'s' if total != 1 else ''}: {parts}"


def layout(sizes: dict[str, int]) -> str:
    """The dimensions along which a variant is partitioned."""
    return " ".join(f"{k.upper()}={v}" for k, v in sizes.items() if v > 1) or "one process"


def machine(shown: LabMachine) -> str:
    """The processor, its cores, and the versions of what ran."""
    versions = ", ".join(f"{name} {version}" for name, version in shown.versions.items())
    if shown.device == "cpu":
        return f"CPU ({shown.processor}), {shown.cores} cores; {versions}"
    return f"{shown.device_name}, {shown.cores} CPU cores; {versions}"


def heading(block: LabBlock) -> str:
    """A block's ranks, link and number of steps."""
    text = f"{block.ranks} rank{'s' if block.ranks > 1 else ''}"
    if block.link_mbit is not None:
        text += f", link {block.link_mbit:,.0f} Mbit/s"
    if block.timed:
        text += f", {block.counted_steps} steps each"
        disturbed = sum(
            present(variant.disturbed_turns)
            for variant in block.variants
            if variant.was_timed and variant.disturbed_turns is not UNSET
        )
        if disturbed:
            text += f", {disturbed} turns disturbed by other programs"
    return text


def loss(variant: LabVariant, step: int) -> str:
    """The loss of one of a trained variant's steps: 0 is the first, -1 the last."""
    losses = present(variant.losses)
    if not losses:
        return "-"
    found = losses[step]
    return "not finite" if found is None else f"{found:.6f}"
