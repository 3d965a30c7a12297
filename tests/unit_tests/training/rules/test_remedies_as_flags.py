"""Every remedy for a Megatron-LM job, made to its flags and to its settings, and asked again."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN
from overlapkit.config.megatron_lm.flags import CHUNK_LAYERS, CHUNKS
from overlapkit.errors import InputError
from overlapkit.explain.report import SEVERITY
from support.megatron_lm_cases import FINDINGS, NOTES, SIZES
from support.megatron_lm_runs import (
    Job,
    as_flags,
    findings,
    in_flags,
    in_settings,
    job_like,
    job_of,
)
from support.rule_cases import ALL_CASES

OWN = {**{name: text for name, (text, _) in FINDINGS.items()}, **NOTES}
NO_FLAGS = {
    # The value is no whole number, at which the parser stops before any rule.
    "dp.bucket-size-value",
}


def shared_jobs() -> dict[str, Job]:
    """The cases of the rules that speak for a Megatron-LM job too."""
    jobs = {name: job_like(name) for name in ALL_CASES if name not in NO_FLAGS}
    return {n: job for n, job in jobs.items() if any(d.rule == n for d in job.decisions())}


JOBS = {**shared_jobs(), **{name: job_of(text, name) for name, text in OWN.items()}}


def with_edits(name: str) -> list[Decision]:
    return [d for d in JOBS[name].decisions() if d.rule == name and d.edits]


MENDED = [name for name in JOBS if with_edits(name)]


def test_own_findings_have_changes() -> None:
    for name in FINDINGS:
        for decision in JOBS[name].decisions():
            assert decision.rule != name or decision.edits, name


def still_said(decision: Decision, after: list[Decision]) -> bool:
    """Whether a finding, or the remedy of a note, is there again."""
    return any(
        (d.rule, d.knob, d.outcome) == (decision.rule, decision.knob, decision.outcome)
        and (d.is_finding or d.edits)
        for d in after
    )


@pytest.mark.parametrize("name", MENDED)
def test_changes_of_flags_mend(name: str) -> None:
    job = JOBS[name]
    before = findings(job.decisions())
    for decision in with_edits(name):
        after = in_flags(job, decision.edits).decisions()
        assert not still_said(decision, after), decision.remedy
        assert findings(after) <= before, decision.remedy


@pytest.mark.parametrize("name", MENDED)
def test_changes_of_settings_mend(name: str) -> None:
    job = JOBS[name]
    before = findings(job.decisions())
    for decision in with_edits(name):
        after = in_settings(job, decision.edits)
        assert not still_said(decision, after), decision.edits
        assert findings(after) <= before, decision.edits


@pytest.mark.parametrize("name", MENDED)
def test_all_findings_are_mended_together(name: str) -> None:
    job = JOBS[name]
    for _ in range(3):
        found = [d for d in job.decisions() if d.is_finding]
        job = in_flags(job, [edit for d in found for edit in d.edits])
    assert not [d for d in job.decisions() if d.is_finding and d.edits]


def mixed(seed: int) -> Job:
    """Two jobs' arguments as one, with a version and a size by chance."""
    chance = random.Random(seed)
    while True:
        one, other = (JOBS[name] for name in chance.sample(sorted(JOBS), 2))
        # Both together are bad input, which no rule speaks of.
        if not {CHUNK_LAYERS, CHUNKS} <= {*one.words, *other.words}:
            break
    return replace(
        one,
        words=one.words + other.words[len(SIZES.split()) :],
        core=chance.choice([one.core, other.core, *(stack.core for stack in KNOWN)]),
        software=AssumedSoftware(te=chance.choice(["any", "any", "2.2.0"])),
        world_size=chance.choice([64, 128]),
    )


@pytest.mark.parametrize("seed", range(0, 300, 30))
def test_the_findings_of_any_job_are_mended(seed: int) -> None:
    """The worst finding is mended, then the next, until none is left that can be."""
    for each in range(seed, seed + 30):
        job = start = mixed(each)
        for _ in range(6):
            found = [d for d in job.decisions() if d.is_finding and d.edits]
            if not found:
                break
            wrong = {d.rule for d in found if d.outcome is Outcome.WRONG_NUMBERS}
            job = in_flags(job, min(found, key=lambda d: SEVERITY.index(d.outcome)).edits)
            after = {d.rule for d in job.decisions() if d.outcome is Outcome.WRONG_NUMBERS}
            assert after <= wrong, (start.core, start.words)
        assert not [d for d in job.decisions() if d.is_finding and d.edits], (
            start.core,
            start.words,
        )


_SECTION = re.compile(r"\b(model|ddp|optimizer|train|megatron_lm)\.\w|\bcomm_overlap\b")


def test_no_remedy_names_a_section_that_megatron_lm_does_not_have() -> None:
    for job in (*JOBS.values(), *map(mixed, range(300))):
        for decision in job.decisions():
            assert not _SECTION.search(decision.remedy or ""), (decision.rule, decision.remedy)


@pytest.mark.parametrize("name", MENDED)
def test_a_remedy_says_its_changes(name: str) -> None:
    """The first alternative has every flag that is passed or omitted, and no key."""
    for decision in with_edits(name):
        change = as_flags(JOBS[name], decision.edits)
        remedy = decision.remedy or ""
        first = remedy.partition(", or ")[0]
        for words in change.add:
            assert words[0] in first or "the flag" in first, (remedy, words)
        given = {word.partition("=")[0] for word in JOBS[name].words}
        for flag in given & set(change.remove):
            assert flag in first or "the flag" in first, (remedy, flag)


def test_what_was_not_given_is_not_to_be_omitted() -> None:
    job = JOBS["lm.muon-no-overlap"]
    (decision,) = with_edits("lm.muon-no-overlap")
    assert decision.remedy == "omit --overlap-grad-reduce and --overlap-param-gather"
    assert "--use-distributed-optimizer" not in job.words


@pytest.mark.parametrize(
    ("flags", "core", "remedy", "new"),
    [
        (
            "--use-custom-fsdp --ckpt-format fsdp_dtensor",
            "0.18.2",
            "pass --use-megatron-fsdp, and omit --use-custom-fsdp",
            "--use-megatron-fsdp",
        ),
        (
            "--cuda-graph-impl transformer_engine --cuda-graph-modules attn",
            "0.17.1",
            "pass --cuda-graph-scope attn, and omit --cuda-graph-modules",
            "--cuda-graph-scope attn",
        ),
        (
            "--no-tp-comm-split-ag",
            "0.15.0",
            "pass --disable-tp-comm-split-ag, and omit --no-tp-comm-split-ag",
            "--disable-tp-comm-split-ag",
        ),
        ("--high-priority-a2a-comm-stream", "0.17.1", "omit --high-priority-a2a-comm-stream", ""),
    ],
)
def test_a_flag_of_another_version_gets_its_name_there(
    flags: str, core: str, remedy: str, new: str
) -> None:
    job = Job([*JOBS["lm.sequence-parallel-off"].words[:-1], *flags.split()], core)
    (decision,) = [d for d in job.decisions() if d.rule == "lm.flag-versions"]
    assert (decision.remedy or "").startswith(remedy)
    mended = in_flags(job, decision.edits)
    assert not findings(mended.decisions())
    assert " ".join(mended.words).endswith(new)


@pytest.mark.parametrize("flag", ["--freeze-all-layers", "--use-mup", "--optimizer soap"])
def test_what_may_change_the_training_is_left_to_the_user(flag: str) -> None:
    job = Job([*JOBS["lm.sequence-parallel-off"].words[:-1], *flag.split()], "0.16.1")
    (decision,) = [d for d in job.decisions() if d.rule == "lm.flag-versions"]
    assert decision.edits == ()
    assert (decision.remedy or "").startswith(f"omit {flag.split()[0]}")


def test_a_change_that_no_flag_makes_is_not_made() -> None:
    change = as_flags(JOBS["lm.bucket-number"], [Edit("mixed_precision", "bf16_mixed")])
    assert change.why_not
    with pytest.raises(InputError):
        job_like("dp.bucket-size-value").decisions()
