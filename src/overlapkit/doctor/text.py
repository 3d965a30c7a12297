"""An examination as plain lines, and the wording that tables and pages share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from overlapkit.config.megatron_lm.doubt import not_known
from overlapkit.doctor.environment import shown_variables
from overlapkit.doctor.examine import Examination
from overlapkit.doctor.finding import MOST, Finding
from overlapkit.explain.report import Report
from overlapkit.explain.text import basis, layout_text
from overlapkit.output.numbers import imperative, ms_of_us, percent
from overlapkit.trace.labels import count_of

if TYPE_CHECKING:
    from overlapkit.trace.document import TraceDocument


def examined(x: Examination) -> Iterator[tuple[str, str]]:
    """What was examined: a name and what was found there, one each."""
    yield "configuration", "not given" if x.report is None else configuration_text(x.report)
    variables = " ".join(f"{n}={v}" for n, v in shown_variables(x.environment).items())
    yield "environment", f"{x.environment.sources}: {variables or 'no variable of interest is set'}"
    yield "packages", packages_text(x)
    yield "GPUs", x.machine.summary
    yield "profile", "not given" if x.profile is None else profile_text(x.profile)
    for note in x.assumed:
        yield "assumed", note
    for remark in x.remarks:
        yield "note", remark


def packages_text(x: Examination) -> str:
    """What is installed here, or that this is not where the job runs."""
    if not x.trains_here:
        return (
            "not examined: overlapkit has an environment of its own here, without torch; to "
            "examine the job's, run it with the job's Python"
        )
    return ", ".join(f"{p.name} {p.version or '-'}" for p in x.packages) + " (here)"


def configuration_text(report: Report) -> str:
    """A configuration in one line: file, GPUs, layout, Transformer Engine, whose rules."""
    gpus = f"{report.world_size} x {report.assumptions.gpu_name}"
    return ", ".join((report.source, gpus, layout_text(report, " "), *basis(report)))


def profile_text(profile: TraceDocument) -> str:
    """A profile in one line: ranks, and the median step of the slowest rank."""
    ranks, median = profile.ranks, profile.slowest.median
    step, exposed = median.step_us, median.exposed_comm_us
    share = f" ({percent(100 * exposed / step)})" if step else ""
    return (
        f"{count_of(ranks)}, median step {ms_of_us(step)} ms, "
        f"exposed communication {ms_of_us(exposed)} ms{share}"
    )


def cost(finding: Finding) -> str:
    """The measured time of a finding; empty without a profile."""
    return "" if finding.cost_us is None else f"{ms_of_us(finding.cost_us)} ms per step"


def ids(finding: Finding) -> str:
    """The id of a finding and of the rules that apply."""
    return ", ".join(dict.fromkeys([finding.id, *finding.rules]))


def verdict(x: Examination) -> str:
    """The last line."""
    count = len(x.findings)
    if not count and x.report is None and x.profile is None:
        where = "the environment and the packages" if x.trains_here else "the environment"
        return (
            f"Nothing was found in {where}. To examine more, give the run's configuration, and a "
            "profile with --trace."
        )
    if not count and x.report is not None and x.report.not_read:
        unknown = not_known(x.report.gaps) or "the notes name what was not"
        return (
            "Nothing was found that keeps communication from being hidden, in what was read; "
            f"{unknown}."
        )
    if not count:
        return "Nothing was found that keeps communication from being hidden."
    more = f"; the {MOST} most likely are shown" if count > MOST else ""
    return f"{count} finding{'s' if count != 1 else ''}{more}."


def examination_lines(x: Examination) -> Iterator[str]:
    """The examination as plain lines."""
    yield from (f"{name}: {text}" for name, text in examined(x))
    yield ""
    for number, finding in enumerate(x.findings[:MOST], start=1):
        measured = f" ({cost(finding)})" if cost(finding) else ""
        yield f"{number}. {finding.message}{measured} [{ids(finding)}]"
        yield from (f"   {each.source}: {each.text}" for each in finding.evidence)
        if finding.remedy:
            yield f"   -> {imperative(finding.remedy)}"
    yield verdict(x)
