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
from megatron.bridge.training.edits import ENV, listed
from overlapkit.config.effective import FRAMEWORKS
from overlapkit.config.megatron_lm.doubt import not_known
from overlapkit.explain.buckets import (
    BucketExchange,
    bucket_summary,
    chunk_titles,
    stage_text,
    stage_titles,
)
from overlapkit.explain.document import source_of
from overlapkit.explain.lint.order import (
    Said,
    alike,
    faults,
    is_fault,
    leading,
    notes_with_advice,
    said_once,
)
from overlapkit.explain.report import CURRENT, Report
from overlapkit.explain.schedule import bubble_text
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
KNOWN_FAULT = "known fault"
NOTHING = "/dev/null"
"""The environment file that says that nothing is set."""
ALL_IN_EFFECT = "Everything that was requested is in effect."
OPT_IN = "opt-in, not requested: "
READ_IN_EFFECT = "Everything that was requested and read is in effect"
NO_FINDING = "No finding"
"""What is said instead beside a known fault."""
ALL_THAT_WAS_READ = f"{READ_IN_EFFECT}; the notes name what was not read."


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
        bubble: how long the pipeline stands idle, in one line; empty but for pipelines.
    """

    title: str
    said: list[Said]
    variables: tuple[EnvironmentVariable, ...]
    not_requested: str
    buckets: str = ""
    bubble: str = ""


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
            names,
            buckets_text(report) if dimension is Dimension.DP else "",
            idle_text(report) if dimension is Dimension.PP else "",
        )


def buckets_text(report: Report) -> str:
    """The gradient buckets in one line; empty where they are not known, or not used."""
    buckets = report.buckets
    return "" if isinstance(buckets, str) else report.words.fact(bucket_summary(buckets))


def idle_text(report: Report) -> str:
    """How long the pipeline stands idle, in one line; empty where there is none, or not known."""
    return "" if report.pipeline is None else bubble_text(report.pipeline)


def report_lines(report: Report) -> Iterator[str]:
    """The complete report: verdict, findings and advice, then what is in effect, one line each.

    Where nothing was found it is shorter: `overlapkit rules ID` has why a variable is needed and
    where a rule is, and the opt-in knobs that were not requested stand in one line at the end.
    """
    yield header(report)
    yield verdict(report)[0]
    lead = leading(report)
    yield from ("",) if lead else ()
    yield from (leading_line(report, *group) for group in alike(lead))
    yield ""
    yield run_text(report)
    yield from (f"assumed: {note}" for note in report.notes)
    yield from (f"note: {remark}" for remark in report.remarks)
    is_well = not report.findings
    not_requested: list[str] = []
    for section in sections(report):
        if is_well and section.not_requested:
            not_requested.append(section.not_requested)
        lines = list(_section_lines(report, section, is_well=is_well))
        if lines:
            yield ""
            yield section.title
            yield from lines
    if not_requested:
        yield ""
        yield f"default  {OPT_IN}{', '.join(not_requested)}"


def _section_lines(report: Report, section: Section, *, is_well: bool) -> Iterator[str]:
    if is_well and section.variables:
        needed = [f"{v.name}={v.value}" for v in section.variables]
        rules = dict.fromkeys(v.rule for v in section.variables)
        yield f"needs {' '.join(needed)} [{', '.join(rules)}]"
    else:
        for names, variable in by_reason(section.variables):
            needs = f"needs {' '.join(names)}: {variable.reason.rstrip('.')}"
            yield f"{needs} [{variable.rule}, {place(variable.rule)}]"
    yield from (_said_line(report, said, is_well=is_well) for said in section.said)
    if section.not_requested and not is_well:
        yield f"default  {OPT_IN}{section.not_requested}"
    if section.buckets:
        yield f"buckets  {section.buckets}"
    if section.bubble:
        yield f"bubble  {section.bubble}"


def brief_lines(report: Report) -> Iterator[str]:
    """The verdict, the findings and known faults alone, and what was assumed for them."""
    yield header(report)
    yield verdict(report)[0]
    yield from (leading_line(report, d) for d in [*report.findings, *faults(report)])
    yield "; ".join(basis(report))
    if report.notes:
        yield assumed_text(report)
    yield from (f"note: {remark}" for remark in report.remarks)


def buckets_lines(report: Report) -> Iterator[str]:
    """The totals of each stage, then every bucket of every stage and chunk, one line each."""
    yield f"{report.source}  {gpus_text(report)}"
    yield layout_text(report)
    yield ""
    if isinstance(report.buckets, str):
        yield report.words.fact(report.buckets)
        return
    yield from (f"{title}: {stage_text(stage)}" for title, stage in stage_titles(report.buckets))
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


def leading_line(report: Report, d: Decision, *same: Decision) -> str:
    """A finding or a note with advice: the user's place, then the outcome, why, and what to do.

    Args:
        report: the report.
        d: the finding or note.
        same: others that say the same of other variables.
    """
    where = report.place(d)
    line = f"{label(d)} {message_text(report, d, *same)}"
    return line if where is None else f"{where}: {line}"


def label(d: Decision) -> str:
    """The outcome of a decision in words."""
    return KNOWN_FAULT if is_fault(d) else LABELS[d.outcome]


def message_text(report: Report, d: Decision, *same: Decision) -> str:
    """A decision without its outcome and place: the knob, its value, why, and what to do."""
    values = ", ".join(said_value(report, each) for each in (d, *same))
    reason, remedy = together(d, *same)
    line = f"{values}: {reason} [{d.rule}, {place(d.rule)}]"
    return line + (f" -> {remedy}" if remedy else "")


def together(d: Decision, *same: Decision) -> tuple[str, str]:
    """The reason and the remedy of decisions that say the same of several variables."""
    reason, remedy = d.reason.rstrip("."), imperative(d.remedy or "")
    names = [each.knob.removeprefix(ENV) for each in (d, *same)]
    if same:
        reason = reason.replace(names[0], "them")
        value = f"={d.requested}" if f"{names[0]}={d.requested}" in remedy else ""
        all_of_them = " and ".join(f"{name}{value}" for name in names)
        remedy = remedy.replace(f"{names[0]}{value}", all_of_them, 1)
    return reason, remedy


def assumed_text(report: Report) -> str:
    """How much was assumed in reading a launch script, where that is not listed."""
    return f"{_count(len(report.notes), 'note')} on how it was read: see them without --brief"


def _said_line(report: Report, said: Said, *, is_well: bool) -> str:
    d = said.first
    line = f"{LABELS[d.outcome]} {', '.join(said_value(report, x) for x in said.decisions)}"
    if said.leads:
        return f"{line}: see above"
    if not said.reason:
        return f"{line}: as above [{', '.join(said.rules)}]"
    rules = ", ".join(said.rules) if is_well else said_rules(said)
    return f"{line}: {said.reason.rstrip('.')} [{rules}]"


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
    """The sizes of the parallel dimensions, and the microbatches of a step where they are known.

    Such as ``TP 4  PP 2  VPP none  CP 1  EP 1  DP 8, 64 microbatches``.
    """
    e = report.effective
    sizes = {
        "TP": e["model.tensor_model_parallel_size"],
        "PP": e["model.pipeline_model_parallel_size"],
        "VPP": e["model.virtual_pipeline_model_parallel_size"] or "none",
        "CP": e["model.context_parallel_size"],
        "EP": e["model.expert_model_parallel_size"],
        "DP": report.data_parallel_size,
    }
    text = gap.join(f"{name} {size}" for name, size in sizes.items())
    count = report.microbatches
    return text if count is None else f"{text}, {_count(count, 'microbatch')}"


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
    known = faults(report)
    notes = [d for d in notes_with_advice(report) if d.certain and d not in known]
    advised = known or notes or report.not_read
    tone: Tone = "bad" if findings else "advice" if advised else "good"
    counts = ((known, KNOWN_FAULT, ""), (notes, "note", " with advice"))
    advice = "; ".join(
        f"{_count(len(group), what)}{more}: {', '.join(report.names(group))}"
        for group, what, more in counts
        if group
    )
    if findings:
        knobs = ", ".join(f"{LABELS[d.outcome]} {report.words.short(d.knob)}" for d in findings)
        said = f"{_count(len(findings), 'finding')}: {knobs}"
        return (f"{said}; {advice}" if advice else said), tone
    said = ALL_THAT_WAS_READ if report.not_read else well
    if known:
        said = said.replace(READ_IN_EFFECT, NO_FINDING) if report.not_read else f"{NO_FINDING}."
    unknown = not_known(report.gaps)
    if report.not_certain:
        knobs = listed(report.names(report.not_certain))
        said = f"Not certain: {'; '.join(filter(None, (knobs, unknown)))}."
    elif unknown:
        said = f"{NO_FINDING if known else READ_IN_EFFECT}; {unknown}."
    return (f"{said} {advice}" if advice else said), tone


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("ch") else "s"
    return f"{number:,} {what}{plural if number != 1 else ''}"


def finding_line(report: Report, d: Decision) -> str:
    """A finding, with its reason and its remedy."""
    line = f"{LABELS[d.outcome]}  {report.name(d)}: {d.reason.rstrip('.')}"
    return line + (f" -> {imperative(d.remedy)}" if d.remedy else "")


def value_text(report: Report, d: Decision) -> str:
    """A decision's value; where a request was refused, from the requested one to the effective.

    Where the job does not run like this, what was set: no other value is in effect then.
    """
    old, new = (report.words.value(d.knob, value) for value in (d.requested, d.effective))
    if d.outcome is Outcome.REFUSED and d.requested is not None:
        return change_text(old, new)
    # Of an environment variable the effective value is the one that was set.
    stops = d.outcome is Outcome.ERROR and not d.knob.startswith(ENV)
    if stops and d.requested is not None and d.requested != d.effective:
        return f"set: {setting_text(old)}"
    return setting_text(new)


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


def change_text(old: Any, new: Any) -> str:
    """Two values of a setting; of two objects only the keys that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [str(key) for key in {**old, **new} if old.get(key) != new.get(key)]
        return f"given, with a different {', '.join(changed)}"
    return f"{setting_text(old)} -> {setting_text(new)}"
