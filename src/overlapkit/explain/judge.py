"""A run judged by the rules of one stack, and what its other possible stacks do otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.bridge.training.decisions import RULES, Decision, Outcome
from megatron.bridge.training.edits import listed
from megatron.bridge.training.rules.context import OTHER_VERSIONS
from megatron.bridge.training.runtime_update import OVERWRITTEN, Update, compare_with_request
from megatron.bridge.training.versions import KNOWN, Stack, spoken
from overlapkit.config.effective import EFFECTIVE_KNOBS, knob_value, make_effective
from overlapkit.config.megatron_lm.flag_words import KeyWords, words_of
from overlapkit.config.run import Run, Settings
from overlapkit.config.versions import is_lacking
from overlapkit.output.numbers import setting_text

if TYPE_CHECKING:
    from overlapkit.explain.report import Assumptions


@dataclass(frozen=True)
class Judged:
    """What the rules of one stack make of a run.

    Attributes:
        stack: the versions.
        run: the configuration objects as the model is built from them.
        update: how they became effective.
        effective: `EFFECTIVE_KNOBS` and their values.
        decisions: every decision, compared with what was set explicitly.
    """

    stack: Stack
    run: Run
    update: Update
    effective: Mapping[str, Any]
    decisions: list[Decision]


def judge(settings: Settings, world_size: int, assumptions: Assumptions) -> Judged:
    """Apply the rules of the settings' own stack.

    Raises:
        InputError: a section cannot be built.
        OverlapConfigError: the layout does not divide the world size.
    """
    run, update = make_effective(
        settings, world_size, assumptions.software, assumptions.job, assumptions.machine
    )
    effective = {knob: knob_value(run, knob) for knob in EFFECTIVE_KNOBS}
    flat = settings.flat()
    asked = (k for k in settings.asked if k in effective and k not in update.replaced)
    requested = {k: flat[k] for k in asked if flat[k] is not None}
    decisions = compare_with_request(
        update.decisions, requested, effective, _others_set(settings, flat)
    )
    if settings.after_setup is not None:
        decisions = list(_not_requested(decisions, settings))
    words = words_of(settings)
    decisions = [
        words.decision(d)
        for d in decisions
        if d.outcome is not Outcome.NOTE or not _is_mended(d, decisions)
        if d.rule != OVERWRITTEN.id or not _has_flag_of_another(d, decisions, words)
    ]
    decisions = [_as_certain_as_defaults(d, settings) for d in decisions]
    return Judged(settings.stack, run, update, effective, decisions)


def _as_certain_as_defaults(d: Decision, settings: Settings) -> Decision:
    """A finding that rests on the default of a setting becomes a note where that is not certain.

    Megatron-Bridge's recipes and other launchers have defaults of their own, which a file that
    names only some settings leaves as they are. A file that Megatron-Bridge wrote has every field,
    and the defaults of Megatron-LM's flags are known.
    """
    certain = settings.is_dump or (settings.framework == "megatron-lm" and settings.origin is None)
    if certain or not d.is_finding:
        return d
    flat = settings.flat()
    unset = [key for key in RULES[d.rule].rests_on if flat.get(key) is None]
    if not unset:
        return d
    return dataclasses.replace(
        d,
        outcome=Outcome.NOTE,
        reason=f"{d.reason.rstrip('.')}; not certain: {listed(unset)} "
        f"{'is' if len(unset) == 1 else 'are'} not set here, and a recipe may set "
        f"{'it' if len(unset) == 1 else 'them'}",
        edits=(),
        certain=False,
    )


def _others_set(settings: Settings, flat: Mapping[str, Any]) -> dict[str, Any]:
    """What a person set besides `EFFECTIVE_KNOBS`, and its value.

    A file that Megatron-Bridge wrote has a recipe's values in every field: nothing there shows
    that a person chose one, except an override.
    """
    return {
        key: flat[key]
        for key in settings.asked
        if key not in EFFECTIVE_KNOBS and flat.get(key) is not None
        if not settings.is_dump or key in settings.overridden
    }


def _not_requested(decisions: Sequence[Decision], settings: Settings) -> Iterator[Decision]:
    """The decisions on a file that was written after setup, which filled in the userbuffers.

    The mapping of a GEMM's settings is setup's own then: it is no request, and nobody can be asked
    to write it in another way.
    """
    knob = "model.tp_comm_overlap_cfg"
    mine = {key for key in settings.overridden if key.endswith(".tp_comm_overlap_cfg")}
    for d in decisions:
        about = d.knob == knob or d.knob.startswith(f"{knob}.")
        if mine or not about or d.is_finding:
            yield d
        elif d.outcome is Outcome.GRANTED:
            yield dataclasses.replace(
                d, requested=None, outcome=Outcome.DEFAULT, reason="as setup left it in the file"
            )
        elif d.knob == knob:
            yield d


def on_other_stacks(
    settings: Settings, world_size: int, assumptions: Assumptions, newest: Judged
) -> Iterator[Decision]:
    """What the versions that a run may also have do otherwise.

    These are stops, refusals and bugs that the newest does not have, those that it alone has, and
    other values of the knobs.

    Args:
        settings: the run's; where its versions are known there is nothing else to say.
        world_size: GPUs of the job.
        assumptions: what the settings do not say.
        newest: what the newest of its versions makes of it.
    """
    others = [
        judge(dataclasses.replace(settings, stacks=(stack,)), world_size, assumptions)
        for stack in other_stacks(settings)
    ]
    notes = [*_only_there(newest, others), *_only_here(newest, others)]
    told = {d.knob for d in notes} | {d.knob for d in newest.decisions if d.is_finding}
    yield from notes
    yield from _other_values(newest, others, told, words_of(settings))


def other_stacks(settings: Settings) -> list[Stack]:
    """The versions that a run may also have, oldest first; none where they are known.

    A version that lacks a section or a key which was set is none of them.
    """
    if settings.stacks:
        return list(settings.stacks[:-1])
    newest = KNOWN[-1]
    given = [("", section) for section, content in settings.values.items() if content]
    for dotted in settings.asked:
        section, _, key = dotted.partition(".")
        if (settings.values.get(section) or {}).get(key) is not None:
            given.append((section, key))
    known = [each for each in given if not is_lacking(*each, newest)]
    return [stack for stack in KNOWN[:-1] if not any(is_lacking(*each, stack) for each in known)]


def _only_there(newest: Judged, others: Sequence[Judged]) -> Iterator[Decision]:
    """Findings and bugs of other versions that the newest does not have."""
    known = {(d.rule, d.knob) for d in newest.decisions}
    found: dict[tuple[str, str], tuple[Decision, list[Stack]]] = {}
    for other in others:
        for d in other.decisions:
            key = (d.rule, d.knob)
            new = key not in known and not _is_mended(d, newest.decisions)
            if new and (d.is_finding or RULES[d.rule].is_bug):
                found.setdefault(key, (d, []))[1].append(other.stack)
    for d, stacks in found.values():
        reason = f"{_with(stacks)}: {d.reason.rstrip('.')} ({d.rule})"
        yield _note(d, reason, f"; for those versions: {d.remedy}" if d.remedy else "")


def _is_mended(d: Decision, decisions: Sequence[Decision]) -> bool:
    """Whether the remedy of a finding about the same knob is a remedy of a decision too."""
    return bool(d.edits) and any(
        other.is_finding and other.knob == d.knob and all(e in other.edits for e in d.edits)
        for other in decisions
    )


def _has_flag_of_another(d: Decision, decisions: Sequence[Decision], words: KeyWords) -> bool:
    """Whether a finding about another knob is about the same flag: that one says why."""
    flag = words.flag(d.knob)
    return flag is not None and any(
        other.is_finding and other.knob != d.knob and words.flag(other.knob) == flag
        for other in decisions
    )


_FOUND = {
    Outcome.ERROR: "stops the job",
    Outcome.WRONG_NUMBERS: "lets the job train on wrong numbers",
}


def _only_here(newest: Judged, others: Sequence[Judged]) -> Iterator[Decision]:
    """Findings of the newest version that others do not have."""
    for d in newest.decisions:
        if not d.is_finding:
            continue
        without = [
            other.stack
            for other in others
            if not any(x.is_finding and x.knob == d.knob for x in other.decisions)
        ]
        if without:
            what = _FOUND.get(d.outcome, "refuses it")
            reason = f"{_with(without)} it is accepted: {d.rule} {what} only with newer ones"
            yield _note(d, reason, "")


def _other_values(
    newest: Judged, others: Sequence[Judged], told: set[str], words: KeyWords
) -> Iterator[Decision]:
    """Knobs that have another value with another version, and no note yet."""
    for knob, value in newest.effective.items():
        by_value: dict[str, tuple[Any, list[Stack]]] = {}
        for other in others:
            there = other.effective[knob]
            if there != value and knob not in told and (there or value):
                by_value.setdefault(repr(there), (there, []))[1].append(other.stack)
        about = next((d for d in newest.decisions if d.knob == knob), None)
        for there, stacks in by_value.values():
            known = [setting_text(words.value(knob, each)) for each in (there, value)]
            reason = f"{_with(stacks)} it is {known[0]}, not {known[1]}"
            yield OTHER_VERSIONS.decide(
                knob,
                requested=None,
                effective=value,
                reason=reason,
                outcome=Outcome.NOTE,
                remedy=OTHER_VERSIONS.remedy,
                dimension=about.dimension if about is not None else None,
            )


def _note(d: Decision, reason: str, remedy: str) -> Decision:
    return OTHER_VERSIONS.decide(
        d.knob,
        requested=d.requested,
        effective=d.effective,
        reason=reason,
        outcome=Outcome.NOTE,
        remedy=f"state the job's version with --core{remedy}",
        dimension=d.dimension,
    )


def _with(stacks: Sequence[Stack]) -> str:
    return f"with megatron-core {spoken([stack.core or '' for stack in stacks])}"
