"""A plan in the language of the run that it is for: flags for a Megatron-LM job, keys otherwise."""

from __future__ import annotations

from overlapkit.config.megatron_lm.flag_edits import FlagEdit
from overlapkit.config.megatron_lm.flag_words import flags_for, in_words_of_flags
from overlapkit.plan.plan import Plan


def spoken(plan: Plan, text: str) -> str:
    """A sentence of a plan; for a Megatron-LM job with flags in the place of keys."""
    if plan.passed is None:
        return text
    return in_words_of_flags(text, _core(plan), plan.passed)


def recommended_flags(plan: Plan) -> FlagEdit | None:
    """The recommendation as flags to pass and to omit; None for a run that takes none."""
    if plan.passed is None:
        return None
    settings = plan.recommendation.proposal.recommended_settings
    change = flags_for(settings.items(), _core(plan))
    return FlagEdit(change.add, tuple(flag for flag in change.remove if flag in plan.passed))


def _core(plan: Plan) -> str | None:
    return plan.recommendation.proposal.report.basis.stack.core
