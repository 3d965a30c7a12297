"""How figures of the lab's document are put for a person, on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overlapkit.output.numbers import ms_of_ms

OUTCOMES = ("confirmed", "not confirmed", "not testable here")


@dataclass(frozen=True)
class Story:
    """A scenario's change of the step, from the first timed variant of a block to the fastest.

    Attributes:
        first: name of the variant that the others are held against.
        best: name of the fastest.
        before_ms, after_ms: their median steps.
        ideal_ms: the shortest that overlap could make; None where nothing was profiled.
    """

    first: str
    best: str
    before_ms: float
    after_ms: float
    ideal_ms: float | None

    @property
    def told(self) -> str:
        """In words."""
        if self.first == self.best:
            return f"{self.first}, the first, is the fastest: {ms_of_ms(self.before_ms)} ms a step"
        text = (
            f"{self.first} {ms_of_ms(self.before_ms)} ms, "
            f"{self.best} {ms_of_ms(self.after_ms)} ms a step: "
            f"{self.after_ms / self.before_ms:.2f} x"
        )
        return text if self.ideal_ms is None else f"{text} (ideal {ms_of_ms(self.ideal_ms)} ms)"


def story(scenario: dict[str, Any]) -> Story | None:
    """Of the scenario's first timed block; None where nothing was timed."""
    for block in scenario["blocks"]:
        timed = [each for each in block["variants"] if each.get("step_ms") is not None]
        if len(timed) > 1:
            best = min(timed, key=lambda each: each["step_ms"])
            return Story(
                timed[0]["name"],
                best["name"],
                timed[0]["step_ms"],
                best["step_ms"],
                block["ideal_ms"],
            )
    return None


def outcomes(scenarios: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Claims by outcome, without those outcomes that no claim has."""
    claims = [claim["outcome"] for scenario in scenarios for claim in scenario["claims"]]
    return {outcome: claims.count(outcome) for outcome in OUTCOMES if outcome in claims}


def sentence(counts: dict[str, int]) -> str:
    """Counted outcomes in words."""
    total = sum(counts.values())
    if list(counts) == ["confirmed"]:
        return f"all {total} claims confirmed" if total > 1 else "the claim is confirmed"
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{total} claim{'s' if total != 1 else ''}: {told}"


def layout(sizes: dict[str, int]) -> str:
    """The dimensions that a variant is split along."""
    return " ".join(f"{k.upper()}={v}" for k, v in sizes.items() if v > 1) or "one process"


def processor(machine: dict[str, Any]) -> str:
    """What computed."""
    if machine["device"] == "cpu":
        return f"CPU ({machine['processor']}), {machine['cores']} cores"
    return f"{machine['device_name']}, {machine['cores']} CPU cores"
