"""A report and a difference as plain lines, and the wording that tables and pages share.

Free of rich, whose import takes a fifth of the command's time. Programs and agents read the lines,
so they are neither padded nor broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Literal

from megatron.bridge.recipes.launch_env import EnvironmentVariable
from megatron.bridge.training.decisions import RULES, Decision, Dimension, Outcome
from megatron.bridge.training.edits import listed
from overlapkit.config.effective import FRAMEWORKS
from overlapkit.config.megatron_lm.doubt import not_known
from overlapkit.explain.buckets import BucketExchange, bucket_summary, chunk_titles
from overlapkit.explain.difference import Change, Difference
from overlapkit.explain.document import source_of
from overlapkit.explain.lint.order import Said, leading, notes_with_advice, said_once
from overlapkit.explain.report import CURRENT, Report
from overlapkit.explain.stack_document import stack_text
from overlapkit.output.numbers import imperative, setting_text

Tone = Literal["good", "advice", "bad"]
"""What a verdict amounts to; the terminal and the page color it."""

TITLES = {
    Dimension.TP: "Tensor parallel",
    Dimension.DP: "Data parallel",
    Dimension.PP: "Pipeline parallel",
    Dimension.CP: "Context parallel",
    Dimension.EP: "Expert parallel",
    Dimension.PRECISION: "Mixed precision",
    Dimension.ANY: "Other",
    Dimension.LAUNCH: "Launch environment",
}
LABELS = {
    Outcome.GRANTED: "granted",
    Outcome.DEFAULT: "default",
    Outcome.REFUSED: "REFUSED",
    Outcome.WRONG_NUMBERS: "WRONG NUMBERS",
    Outcome.ERROR: "ERROR",
    Outcome.NOTE: "note",
}
NOTHING = "/dev/null"
"""The environment file that says that nothing is set."""
ALL_IN_EFFECT = "Everything that was requested is in effect."
READ_IN_EFFECT = "Everything that was requested and read is in effect"
ALL_THAT_WAS_READ = f"{READ_IN_EFFECT}; the notes name what was not read."

_MOST_CAUSES = 6
"""Keys of one cause that are listed."""


@dataclass(frozen=True)
class Section:
    """What is shown of one dimension.

    Attributes:
        title: its name in words.
        said: its decisions, without those about opt-in knobs that were not requested; those with
            the same reason together.
        variables: the environment variables that the job needs; empty but for the launch.
        not_requested: the opt-in knobs that were not requested, with their values; empty without
            any.
        buckets: the gradient buckets in one line; empty but for data parallelism.
    """

    title: str
    said: list[Said]
    variables: tuple[EnvironmentVariable, ...]
    not_requested: str
    buckets: str = ""


def sections(report: Report) -> Iterator[Section]:
    """The dimensions that have something to show, in order; the environment is the last."""
    lead = leading(report)
    before: set[str] = set()
    for dimension, title in TITLES.items():
        decisions = [d for d in report.decisions if d.dimension == dimension]
        variables = report.launch_env if dimension is Dimension.LAUNCH else ()
        if not decisions and not variables:
            continue
        opt_in = [d for d in decisions if RULES[d.rule].opt_in and d.outcome is Outcome.DEFAULT]
        names = ", ".join(f"{report.name(d)} ({value_text(report, d)})" for d in opt_in)
        yield Section(
            title,
            said_once([d for d in decisions if d not in opt_in], lead, before),
            variables,
            f"opt-in, not requested: {names}" if names else "",
            buckets_text(report) if dimension is Dimension.DP else "",
        )


def buckets_text(report: Report) -> str:
    """The gradient buckets in one line; empty where they are not known, or not used."""
    buckets = report.buckets
    return "" if isinstance(buckets, str) else report.words.fact(bucket_summary(buckets))


def report_lines(report: Report) -> Iterator[str]:
    """The complete report: verdict, findings and advice, then what is in effect, one line each."""
    yield header(report)
    yield verdict(report)[0]
    lead = leading(report)
    yield from ("",) if lead else ()
    yield from (leading_line(report, d) for d in lead)
    yield ""
    yield run_text(report)
    yield from (f"assumed: {note}" for note in report.notes)
    yield from (f"note: {remark}" for remark in report.remarks)
    for section in sections(report):
        yield ""
        yield section.title
        for names, variable in by_reason(section.variables):
            needs = f"needs {' '.join(names)}: {variable.reason.rstrip('.')}"
            yield f"{needs} [{variable.rule}, {place(variable.rule)}]"
        yield from (_said_line(report, said) for said in section.said)
        if section.not_requested:
            yield f"default  {section.not_requested}"
        if section.buckets:
            yield f"buckets  {section.buckets}"


def brief_lines(report: Report) -> Iterator[str]:
    """The verdict and the findings alone, and what was assumed for them."""
    yield header(report)
    yield verdict(report)[0]
    yield from (leading_line(report, d) for d in report.findings)
    yield "; ".join(basis(report))
    if report.notes:
        yield assumed_text(report)
    yield from (f"note: {remark}" for remark in report.remarks)


def buckets_lines(report: Report) -> Iterator[str]:
    """Every bucket of every stage and chunk, one line each, under its summary."""
    yield f"{report.source}  {gpus_text(report)}"
    yield layout_text(report)
    yield ""
    if isinstance(report.buckets, str):
        yield report.words.fact(report.buckets)
        return
    yield buckets_text(report)
    for title, chunk in chunk_titles(report.buckets):
        yield ""
        yield title
        for number, bucket in enumerate(chunk.buckets, start=1):
            yield f"{number}  " + "  ".join(bucket_cells(bucket))


def bucket_cells(bucket: BucketExchange) -> tuple[str, str, str, str, str]:
    """A bucket's parameters, what is reduced and gathered, its parameters' names, what hides it."""
    gathered = bucket.gathered_bytes
    names = bucket.first if bucket.first == bucket.last else f"{bucket.first} .. {bucket.last}"
    return (
        f"{bucket.parameters:,} parameters" + (" of experts" if bucket.expert else ""),
        f"reduced {bucket.reduced_bytes / 1e6:,.1f} MB over {bucket.ranks}",
        "gathered ?" if gathered is None else f"gathered {gathered / 1e6:,.1f} MB",
        names,
        f"hidden by: {bucket.hidden_by or 'nothing'}",
    )


def leading_line(report: Report, d: Decision) -> str:
    """A finding or a note with advice: the user's place, then the outcome, why, and what to do."""
    where = report.place(d)
    line = f"{LABELS[d.outcome]} {message_text(report, d)}"
    return line if where is None else f"{where}: {line}"


def message_text(report: Report, d: Decision) -> str:
    """A decision without its outcome and place: the knob, its value, why, and what to do."""
    line = f"{said_value(report, d)}: {d.reason.rstrip('.')} [{d.rule}, {place(d.rule)}]"
    return line + (f" -> {imperative(d.remedy)}" if d.remedy else "")


def assumed_text(report: Report) -> str:
    """How much was assumed in reading a launch script, where that is not listed."""
    return f"{_count(len(report.notes), 'note')} on how it was read: see them without --brief"


def _said_line(report: Report, said: Said) -> str:
    d = said.first
    line = f"{LABELS[d.outcome]} {', '.join(said_value(report, x) for x in said.decisions)}"
    if said.leads:
        return f"{line}: see above"
    if not said.reason:
        return f"{line}: as above [{', '.join(said.rules)}]"
    return f"{line}: {said.reason.rstrip('.')} [{said_rules(said)}]"


def said_rules(said: Said) -> str:
    """The rules that decided, and where each is declared."""
    return "; ".join(f"{rule}, {place(rule)}" for rule in said.rules)


def header(report: Report) -> str:
    """The input, the GPUs, and where the environment comes from."""
    return f"{report.source}  {gpus_text(report)}  {environment_text(report)}"


def environment_text(report: Report) -> str:
    """Where the job's environment comes from."""
    a = report.assumptions
    declared = report.environment.declared
    if not a.environment_is_the_jobs and a.environment_source != CURRENT:
        return f"environment: {a.environment_source}; not all of it is known"
    if not a.environment_is_the_jobs:
        looked = "environment and env_vars were" if declared else "environment was"
        return f"the shell's own {looked} looked at (see --env-file)"
    if a.environment_source == NOTHING:
        nothing = "nothing but env_vars is set" if declared else "nothing is set"
        return f"environment: {nothing} (--env-file {NOTHING})"
    return f"environment: {a.environment_source}{' and env_vars' if declared else ''}"


def gpus_text(report: Report) -> str:
    """How many GPUs of which kind, and whether the kind is assumed."""
    a = report.assumptions
    return f"{report.world_size} x {a.gpu_name}" + ("" if a.gpu_given else " (assumed: see --gpu)")


def layout_text(report: Report, gap: str = "  ") -> str:
    """The sizes of the parallel dimensions, such as ``TP 4  PP 2  VPP none  CP 1  EP 1  DP 8``."""
    e = report.effective
    sizes = {
        "TP": e["model.tensor_model_parallel_size"],
        "PP": e["model.pipeline_model_parallel_size"],
        "VPP": e["model.virtual_pipeline_model_parallel_size"] or "none",
        "CP": e["model.context_parallel_size"],
        "EP": e["model.expert_model_parallel_size"],
        "DP": report.data_parallel_size,
    }
    return gap.join(f"{name} {size}" for name, size in sizes.items())


def run_text(report: Report) -> str:
    """Layout, Transformer Engine, and whose rules were applied."""
    return "  ".join((layout_text(report), *basis(report)))


def basis(report: Report) -> tuple[str, str]:
    """What the rules were applied on: Transformer Engine, and whose rules they are."""
    te = f"Transformer Engine {report.assumptions.te}"
    return te, f"{FRAMEWORKS[report.framework]}'s rules ({stack_text(report.basis)})"


def verdict(report: Report, well: str = ALL_IN_EFFECT) -> tuple[str, Tone]:
    """The answer in one line, and its tone: the findings, or that all is well; then the advice.

    Args:
        report: the report.
        well: that all is well, where everything was read.
    """
    findings = report.findings
    notes = [d for d in notes_with_advice(report) if d.certain]
    tone: Tone = "bad" if findings else "advice" if notes or report.not_read else "good"
    advice = ""
    if notes:
        knobs = ", ".join(report.names(notes))
        advice = f"{_count(len(notes), 'note')} with advice: {knobs}"
    if findings:
        knobs = ", ".join(f"{LABELS[d.outcome]} {report.words.short(d.knob)}" for d in findings)
        said = f"{_count(len(findings), 'finding')}: {knobs}"
        return (f"{said}; {advice}" if advice else said), tone
    said = ALL_THAT_WAS_READ if report.not_read else well
    unknown = not_known(report.gaps)
    if report.not_certain:
        knobs = listed(report.names(report.not_certain))
        said = f"Not certain: {'; '.join(filter(None, (knobs, unknown)))}."
    elif unknown:
        said = f"{READ_IN_EFFECT}; {unknown}."
    return (f"{said} {advice}" if advice else said), tone


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def finding_line(report: Report, d: Decision) -> str:
    """A finding, with its reason and its remedy."""
    line = f"{LABELS[d.outcome]}  {report.name(d)}: {d.reason.rstrip('.')}"
    return line + (f" -> {imperative(d.remedy)}" if d.remedy else "")


def value_text(report: Report, d: Decision) -> str:
    """A decision's value; where a request was refused, from the requested one to the effective."""
    old, new = (report.words.value(d.knob, value) for value in (d.requested, d.effective))
    refused = d.outcome is Outcome.REFUSED and d.requested is not None
    return change_text(old, new) if refused else setting_text(new)


def said_value(report: Report, d: Decision) -> str:
    """What a decision is about, and its value."""
    return f"{report.name(d)} {value_text(report, d)}"


def by_reason(
    variables: tuple[EnvironmentVariable, ...],
) -> Iterator[tuple[list[str], EnvironmentVariable]]:
    """Assignments that have the same reason, and one of their variables, which has the reason."""
    for _, same in groupby(variables, key=lambda v: (v.rule, v.reason)):
        group = list(same)
        yield [f"{v.name}={v.value}" for v in group], group[0]


def place(rule_id: str) -> str:
    """File and line of a rule, short: ``comm_overlap.py:120``."""
    file, line = source_of(rule_id)
    return f"{PurePosixPath(file).name}:{line}"


@dataclass(frozen=True)
class ChangeText:
    """One change in words.

    Attributes:
        label: the knob, "buckets", or that a finding is new or gone.
        value: what changed, or the finding.
        reason: why the second run has its value; empty where no decision says so.
        tone: of a finding; None for the other kinds.
    """

    label: str
    value: str
    reason: str
    tone: Tone | None = None


def difference_lines(difference: Difference) -> Iterator[str]:
    """Every change under its cause, then the findings of the second run."""
    after = difference.after
    yield f"{side_text(difference.before)} -> {side_text(after)}"
    yield from rules_text(difference)
    yield from (f"note: {remark}" for remark in remarks_of(difference))
    if not difference.changes:
        yield no_change(difference)
    written = restated(difference)
    if written:
        yield from ("", f"As written: {written}")
    for cause, changes in caused(difference):
        yield from ("", cause)
        for change in changes:
            yield f"  {change.label}  {change.value}"
            if change.reason:
                yield f"    {change.reason}"
    if difference.without_effect:
        yield from ("", WITHOUT_EFFECT, *(f"  {line}" for line in idle_keys(difference)))
    if after.findings:
        yield from ("", f"Findings in {after.source}:")
        yield from (finding_line(after, d) for d in after.findings)


def rules_text(difference: Difference) -> list[str]:
    """Whose rules were applied to the two runs; one line where they are the same."""
    before, after = (basis(side)[1] for side in (difference.before, difference.after))
    return [before] if before == after else [f"before: {before}", f"after: {after}"]


def no_change(difference: Difference) -> str:
    """That no decision differs, and of what that is known."""
    if difference.before.not_read or difference.after.not_read:
        return "No decision differs in what was read; the notes name what was not read."
    return "No decision differs: the overlap in effect is the same."


def remarks_of(difference: Difference) -> list[str]:
    """What is said about both runs' versions and keys, each once."""
    return list(dict.fromkeys((*difference.before.remarks, *difference.after.remarks)))


def side_text(report: Report) -> str:
    """One of the two runs: its configuration and its number of GPUs."""
    return f"{report.source} ({report.world_size})"


WITHOUT_EFFECT = "Changed without effect on the overlap:"


def idle_keys(difference: Difference) -> list[str]:
    """The keys that differ without effect, each with its values and the reason."""
    lines = (
        f"{_key_change(difference, each.key, each.before, each.after)}: {each.reason}"
        for each in difference.without_effect
    )
    # One flag may set several keys.
    return list(dict.fromkeys(lines))


def restated(difference: Difference) -> str:
    """The keys that only differ as they are written; empty without any."""
    idle = {each.key for each in difference.without_effect}
    changes = [c for c in difference.changes if c.restates and c.of.knob not in idle]
    said = (_key_change(difference, c.of.knob, c.before, c.after) for c in changes)
    return ", ".join(dict.fromkeys(said))


def _key_change(difference: Difference, key: str, old: Any, new: Any) -> str:
    words = difference.words
    values = (words.value(key, value) for value in (old, new))
    return f"{words.name(key)} {change_text(*values)}"


def caused(difference: Difference) -> Iterator[tuple[str, list[ChangeText]]]:
    """Each cause in words with the changes that it brings about, the fewest keys first."""
    changes = [c for c in difference.changes if not c.restates]
    changes.sort(key=lambda c: (len(c.causes), c.causes))
    for causes, same in groupby(changes, key=lambda c: c.causes):
        yield _cause(difference, causes), [_change(difference, c) for c in same]


def _cause(difference: Difference, causes: tuple[str, ...]) -> str:
    if not causes:
        return "No set of keys brings this about"
    keys: list[str] = []
    for key in causes[-_MOST_CAUSES:]:
        old, new = difference.keys[key]
        if "." not in key and (old is None or new is None):
            old, new = ("absent" if v is None else _present(v) for v in (old, new))
        keys.append(_key_change(difference, key, old, new))
    more = len(causes) - len(keys)
    keys += [f"{more} more keys (--json lists them)"] if more else []
    return "Because of " + " and ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))


def _present(section: Any) -> str:
    return section if isinstance(section, str) else "present"


def _change(difference: Difference, change: Change) -> ChangeText:
    of, words = change.of, difference.words
    reason = (change.reason or "").rstrip(".")
    if of.kind == "finding":
        new = change.before is None
        value = f"{words.short(of.knob)} ({change.after or change.before} by {of.rule})"
        label = "new finding" if new else "finding gone"
        return ChangeText(label, value, reason, "bad" if new else "good")
    if of.kind == "buckets":
        now, before = change.after or "not counted", change.before or "not counted"
        return ChangeText("buckets", f"{now} (before: {before})", reason)
    values = (words.value(of.knob, value) for value in (change.before, change.after))
    return ChangeText(words.name(of.knob), change_text(*values), reason)


def change_text(old: Any, new: Any) -> str:
    """Two values of a setting; of two objects only the keys that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [str(key) for key in {**old, **new} if old.get(key) != new.get(key)]
        return f"given, with a different {', '.join(changed)}"
    return f"{setting_text(old)} -> {setting_text(new)}"
