"""The user's run: what the rules say of it, and what of it is trained here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from megatron.bridge.training.decisions import STOPS, Decision, Outcome, OverlapConfigError
from megatron.bridge.training.software import AssumedSoftware, installed_stack
from overlapkit.config.effective import make_effective
from overlapkit.config.megatron_lm.doubt import not_known
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.sources import Source, world_size_of
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.fix.command import mend_with, opened
from overlapkit.fix.mend import UNSET, Mended
from overlapkit.fix.target import Target
from overlapkit.lab.own.reduced import Reduced
from overlapkit.lab.own.shrink import RANKS, shrink
from overlapkit.output.numbers import setting_text
from overlapkit.translate.translation import smallest_job

TIMED_RANKS = 4
"""Most processes whose steps are timed: more would wait for the cores of this machine."""

TIMED_SCALE = 4
"""How much wider and longer the timed model is, so that there is compute to hide behind."""


@dataclass(frozen=True)
class Finding:
    """What a rule says against a run, in words.

    Attributes:
        rule: the rule's id.
        knob: what it is about, as the configuration spells it.
        outcome: "wrong-numbers", "error" or "refused".
        reason: why.
        remedy: how to get the other outcome; None where there is none.
        place: where the user set it; None where nothing that the user set is.
    """

    rule: str
    knob: str
    outcome: str
    reason: str
    remedy: str | None = None
    place: str | None = None

    @property
    def stops(self) -> bool:
        """Whether a run must not start with it."""
        return Outcome(self.outcome) in STOPS

    @property
    def sentence(self) -> str:
        """The knob, the reason, the rule and the remedy."""
        where = f"{self.place}: " if self.place else ""
        remedy = f"; remedy: {self.remedy}" if self.remedy else ""
        return f"{where}{self.knob}: {self.reason.rstrip('.')} [{self.rule}]{remedy}"


@dataclass(frozen=True)
class OwnRun:
    """The user's run, and what of it is trained here.

    Attributes:
        source: the configuration, as the user named it.
        world_size: GPUs of the job.
        world_size_assumed: whether nothing states that number, so that it is the smallest with
            data parallelism.
        data_parallel_size: replicas of the job.
        reduced: what is trained; None where the rules refuse the run, and that is the answer.
        timed: what is timed; None where nothing is.
        findings: what the rules say against the run.
        effective: overlap knobs of the run after all rules, by their dotted names.
        not_known: what was not read of the configuration, and could add to it; empty where
            everything was.
        as_written: whether it is trained although the rules refuse it.
        here: what the rules say against starting `reduced` with the versions installed here.
        remedied: the run with the remedies of its findings, reduced too; None where it was not
            asked for, or no settings are known that end what stops the run.
        remedies: what was changed in it.
    """

    source: str
    world_size: int
    world_size_assumed: bool
    data_parallel_size: int
    reduced: Reduced | None
    findings: tuple[Finding, ...]
    effective: dict[str, Any]
    not_known: str = ""
    timed: Reduced | None = None
    as_written: bool = False
    here: tuple[Finding, ...] = ()
    remedied: Reduced | None = None
    remedies: tuple[str, ...] = ()

    @property
    def stopping(self) -> tuple[Finding, ...]:
        """The findings with which the run must not start."""
        return tuple(finding for finding in self.findings if finding.stops)

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings with which it starts, without something that it requests."""
        return tuple(finding for finding in self.findings if not finding.stops)

    @property
    def is_trained(self) -> bool:
        """Whether ranks are started for it."""
        return self.as_written or not (self.stopping or self.here)

    @property
    def is_bypassed(self) -> bool:
        """Whether it is trained although rules refuse it."""
        return self.as_written and bool(self.stopping or self.here)


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What the user says of a run besides its configuration, as for `overlapkit explain`."""

    ranks: int = RANKS
    world_size: int | None = None
    gpu: str | None = None
    te: str | None = None
    env_file: str | None = None
    reading: Reading = field(default_factory=Reading)
    as_written: bool = False


def read_own(source: Source, options: OwnOptions) -> OwnRun:
    """The user's run.

    Raises:
        InputError: its configuration cannot be read, or it does not fit the ranks.
    """
    target, _ = opened(source, options.reading, None)
    settings = target.read()
    stated = options.world_size or (settings.launch.world_size if settings.launch else None)
    size = world_size_of(settings, options.world_size, smallest_job(settings))
    installation = options.reading.installation
    assumptions = assume(options.gpu, options.te, options.env_file, installation=installation)
    report = explain(settings, size, assumptions, other_versions=False)
    own = OwnRun(
        source=source.name or "Megatron-LM's arguments",
        world_size=size,
        world_size_assumed=stated is None,
        data_parallel_size=report.data_parallel_size,
        reduced=None,
        findings=tuple(_finding(d, report) for d in report.findings),
        effective={knob: _plain(value) for knob, value in report.effective.items()},
        not_known=_not_known(report),
        as_written=options.as_written,
    )
    if own.stopping and not options.as_written:
        return own
    reduced = shrink(settings, ranks=options.ranks, world_size=stated)
    own = replace(own, reduced=reduced, here=_stops_here(reduced))
    if own.is_bypassed:
        return _with_remedy(own, target, assumptions, options.ranks)
    return replace(own, timed=_timed(settings, min(options.ranks, TIMED_RANKS), stated))


def _not_known(report: Report) -> str:
    if not report.not_read:
        return ""
    return "; ".join(filter(None, (not_known(report.gaps), *report.remarks)))


def _timed(settings: Settings, ranks: int, world_size: int | None) -> Reduced | None:
    """What is timed: on fewer ranks, and larger; None where its layout needs more ranks."""
    try:
        timed = shrink(settings, ranks=ranks, world_size=world_size, scale=TIMED_SCALE)
    except InputError:
        return None
    return None if timed.ranks > ranks or _stops_here(timed) else timed


def _with_remedy(own: OwnRun, target: Target, assumptions: Assumptions, ranks: int) -> OwnRun:
    """The run with what its remedies make of it."""
    mended = mend_with(target, [own.world_size], assumptions)
    if not mended.is_changed or any(fix.decision.outcome in STOPS for fix in mended.left):
        return own
    size = None if own.world_size_assumed else own.world_size
    try:
        remedied = shrink(mended.after.read(), ranks=ranks, world_size=size)
    except InputError:
        # As written it fits the ranks, and with the remedy it does not.
        return own
    if _stops_here(remedied):
        return own
    return replace(own, remedied=remedied, remedies=tuple(_remedies(mended)))


def _remedies(mended: Mended) -> list[str]:
    changes = [change for fix in mended.fixed for change in fix.changes]
    return [f"{mended.words.name(c.key)}: {_said(c.old)} -> {_said(c.new)}" for c in changes]


def _said(value: Any) -> str:
    return "not set" if value is UNSET else setting_text(value)


def _stops_here(reduced: Reduced) -> tuple[Finding, ...]:
    """What stops the small run with the versions that are installed here, and without a GPU."""
    document = Document("the small run", reduced.settings)
    settings = replace(read_settings(document), stacks=(installed_stack(),))
    try:
        _, update = make_effective(settings, reduced.ranks, AssumedSoftware(te=None))
    except OverlapConfigError as error:
        return (Finding("", "layout", Outcome.ERROR.value, str(error)),)
    return tuple(
        Finding(d.rule, d.knob, d.outcome.value, d.reason, d.remedy)
        for d in update.decisions
        if d.outcome in STOPS
    )


def _finding(decision: Decision, report: Report) -> Finding:
    place = report.place(decision)
    return Finding(
        decision.rule,
        report.name(decision),
        decision.outcome.value,
        decision.reason,
        decision.remedy,
        None if place is None else str(place),
    )


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
