"""A plan in the language of the run that it is for: flags for a Megatron-LM job, keys otherwise."""

from __future__ import annotations

from dataclasses import replace

from overlapkit.config.megatron_lm.flag_edits import FlagEdit
from overlapkit.config.megatron_lm.flag_words import FlagWords, flags_for
from overlapkit.plan.advise.dimensions import DimensionAdvice
from overlapkit.plan.plan import Plan


def spoken(plan: Plan, text: str) -> str:
    """A sentence of a plan that says what to set."""
    return plan.words.advice(text)


def advice(plan: Plan, d: DimensionAdvice) -> DimensionAdvice:
    """What is advised for a kind of parallelism, in the plan's words."""
    remedy = None if d.remedy is None else spoken(plan, d.remedy)
    return replace(d, reason=plan.words.fact(d.reason), remedy=remedy)


def recommended_flags(plan: Plan) -> FlagEdit | None:
    """The recommendation as flags to pass and to omit; None for a run that takes none."""
    words = plan.words
    if not isinstance(words, FlagWords):
        return None
    settings = plan.settings
    for knob, (_, after) in plan.recommendation.changes.items():
        # A flag that turns it off would stay where the defaults turn it on.
        if after is True and words.value(knob, after) is False:
            settings[knob] = after
    change = flags_for(settings.items(), words.version)
    return words.spelt(
        FlagEdit(change.add, tuple(flag for flag in change.remove if flag in words.passed))
    )
