"""Findings that what a launch script leaves unknown may settle: they become notes that say so.

Whether a finding rests on the absence of a flag is found by trial, not by reading rules: a flag is
added that may be there, and the rules are applied again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.edits import ENV, Edit, Removed, listed
from megatron.bridge.training.job_environment import JobEnvironment
from overlapkit.config.gaps import Doubt, Gap
from overlapkit.config.megatron_lm.flag_edits import flag_edits
from overlapkit.config.megatron_lm.flags import FLAGS, known_flag
from overlapkit.config.run import Settings
from overlapkit.errors import InputError

Decide = Callable[[Settings], Iterable[Decision]]
"""What the rules decide on settings."""
Change = tuple[tuple[str, Any], ...]
"""Dotted keys that flags set, and their values."""

_OTHER_PATHS = frozenset(
    {"--use-megatron-fsdp", "--use-custom-fsdp", "--use-torch-fsdp2", "--is-hybrid-model"}
    | {"--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"}
    | {"--decrease-batch-size-if-needed"}
)
"""Flags that replace what a finding is about, or change what is counted: none of them is what it
lacks."""
_SIZES = frozenset(
    f"model.{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "context")
)
"""The layout that decides on the job's variables."""
_TOGETHER: tuple[Change, ...] = (
    (
        ("model.pipeline_model_parallel_size", 2),
        ("model.virtual_pipeline_model_parallel_size", 2),
    ),
    (
        ("model.num_moe_experts", 8),
        ("model.expert_model_parallel_size", 2),
        ("model.moe_token_dispatcher_type", "alltoall"),
    ),
    (
        ("model.num_moe_experts", 8),
        ("model.expert_model_parallel_size", 2),
        ("model.moe_token_dispatcher_type", "alltoall"),
        ("model.overlap_moe_expert_parallel_comm", True),
    ),
)
"""Settings that have an effect only together."""
_MOST_NAMED = 3


def weakened(
    decisions: Sequence[Decision],
    settings: Settings,
    environment: JobEnvironment,
    gaps: Sequence[Gap],
    decide: Decide,
) -> list[Decision]:
    """Decisions of which no finding rests on the absence of what is not known.

    Args:
        decisions: as if nothing were there besides what was read.
        settings: as read.
        environment: what is known of the job's environment.
        gaps: what is not known.
        decide: applies the rules to other settings.
    """
    adding = [gap for gap in gaps if gap.flags != frozenset() and gap.doubt is not Doubt.SETS_UP]
    found = [d for d in decisions if d.is_finding]
    trials = _Trials(settings, adding, decide) if adding and found else None
    result = []
    for d in decisions:
        name = d.knob.removeprefix(ENV)
        absent = d.knob.startswith(ENV) and environment.get(name) is None
        if absent and d.is_finding:
            d = _without_variable(d, name, gaps)
        elif d.is_finding and trials is not None:
            flags = trials.settle(d)
            if flags:
                d = _not_certain(d, [g for g in adding if any(map(g.may_add, flags))], flags)
        result.append(d)
    return result


def _without_variable(d: Decision, name: str, gaps: Iterable[Gap]) -> Decision:
    setting = [gap for gap in gaps if gap.may_set(name)]
    doubtful = [gap for gap in setting if gap.doubt is not Doubt.SETS_UP]
    if doubtful:
        return _not_certain(d, doubtful, [name], "set")
    if setting:
        reason = f"{d.reason.rstrip('.')}; {_named(setting)} {_is(setting)} taken not to set it"
        return replace(d, reason=reason)
    return d


def _not_certain(
    d: Decision, gaps: Sequence[Gap], names: Sequence[str], verb: str = "add"
) -> Decision:
    what = " or ".join(names[:_MOST_NAMED])
    remedy = gaps[0].remedy
    return replace(
        d,
        outcome=Outcome.NOTE,
        reason=f"{d.reason.rstrip('.')}; not certain: {_named(gaps)} may {verb} {what}",
        remedy=f"{remedy}; otherwise {d.remedy}" if d.remedy else remedy,
        edits=(),
        certain=False,
    )


def of_other_rules(decisions: Iterable[Decision], name: str) -> list[Decision]:
    """Decisions on a run of software whose own rules are not known: no finding is certain."""
    return [
        replace(
            d,
            outcome=Outcome.NOTE,
            reason=f"{d.reason.rstrip('.')}; not certain: this is a rule of today's Megatron-LM, "
            f"and this is {name}",
            edits=(),
            certain=False,
        )
        if d.is_finding
        else d
        for d in decisions
    ]


def _named(gaps: Sequence[Gap]) -> str:
    """What is not known, as the subject of a sentence."""
    named = [str(gap) for gap in gaps[:_MOST_NAMED]]
    more = len(gaps) - len(named)
    return listed([*named, f"{more} more"] if more else named)


def _is(gaps: Sequence[Gap]) -> str:
    return "is" if len(gaps) == 1 else "are"


def not_known(gaps: Sequence[Gap]) -> str:
    """What is not known, as a clause of a verdict; empty where everything is."""
    return f"not known: what {_named(gaps)} may add" if gaps else ""


class _Trials:
    """The rules, applied with flags that may be there."""

    def __init__(self, settings: Settings, gaps: Sequence[Gap], decide: Decide) -> None:
        self.settings = settings
        self.gaps = gaps
        self.decide = decide
        self.known: dict[Change, frozenset[tuple[str, str]] | None] = {}

    def settle(self, d: Decision) -> list[str]:
        """Flags with which a finding would not be; of several that would do alone, a few."""
        singles: list[str] = []
        for change in self._changes(d):
            findings = self._findings(change)
            if findings is None or (d.rule, d.knob) in findings:
                continue
            names = _flags_of(change)
            if len(change) > 1 or any(edit.key == change[0][0] for edit in d.edits):
                return singles or names
            singles += names
        return singles

    def _changes(self, d: Decision) -> Iterator[Change]:
        """What may be added: what its remedy adds, then each flag, then those that go together."""
        added = tuple((e.key, e.value) for e in d.edits if not isinstance(e.value, Removed))
        if len(added) == len(d.edits) > 0:
            yield from self._possible(added)
        for flag, declared in FLAGS.items():
            value = {"on": True, "off": False, "int": 2}.get(declared.kind)
            if declared.keys and value is not None and flag not in _OTHER_PATHS:
                change = tuple((key, value) for key in declared.keys)
                if not d.knob.startswith(ENV) or declared.keys[0] in _SIZES:
                    yield from self._possible(change)
        for change in () if d.knob.startswith(ENV) else _TOGETHER:
            yield from self._possible(
                tuple((key, value) for key, value in change if key not in self.settings.asked)
            )

    def _possible(self, change: Change) -> Iterator[Change]:
        """A change, where nothing that it sets is there, and its flags may be added."""
        if not change or any(key in self.settings.asked for key, _ in change):
            return
        flags = _flags_of(change)
        if flags and all(any(gap.may_add(flag) for gap in self.gaps) for flag in flags):
            yield change

    def _findings(self, change: Change) -> frozenset[tuple[str, str]] | None:
        """The findings with a change; None where no job could have it."""
        if change not in self.known:
            try:
                decided = self.decide(_changed(self.settings, change))
                self.known[change] = frozenset((d.rule, d.knob) for d in decided if d.is_finding)
            except InputError:
                self.known[change] = None
        return self.known[change]


def _flags_of(change: Change) -> list[str]:
    """The flags that make a change; none where no flag does."""
    edit = flag_edits([Edit(key, value) for key, value in change])
    return [words[0] for words in edit.add if known_flag(words[0])]


def _changed(settings: Settings, change: Change) -> Settings:
    values = {
        name: content if content is None else dict(content)
        for name, content in settings.values.items()
    }
    for key, value in change:
        section, _, name = key.partition(".")
        content = values.get(section)
        values[section] = {**(content or {}), name: value}
    return replace(settings, values=values, asked=settings.asked | {key for key, _ in change})
