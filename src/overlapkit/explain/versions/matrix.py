"""One configuration judged for several versions, and what is not the same with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.versions import Package, Stack
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.errors import InputError
from overlapkit.explain.difference import outcomes
from overlapkit.explain.lint.order import faults
from overlapkit.explain.report import Assumptions, Report, explain

Kind = Literal["finding", "fault", "knob", "env", "buckets", "bucket-size", "note"]
"""What a row is about: a finding, a known fault that is no finding here, a knob's effective value,
a variable that the job needs, how the first chunk's gradients are divided, the parameters at which
a bucket of it is closed, or a remark on the version and the keys."""


@dataclass(frozen=True)
class Version:
    """The answer for one version.

    Attributes:
        stack: the versions.
        report: the answer; None where the configuration cannot be read or judged for them.
        problem: why not; empty where it was.
    """

    stack: Stack
    report: Report | None
    problem: str = ""

    @property
    def findings(self) -> list[Decision]:
        """Its findings, the worst first."""
        return [] if self.report is None else self.report.findings

    @property
    def fails(self) -> bool:
        """Whether it has a finding, or was not judged."""
        return self.report is None or bool(self.findings)

    @property
    def starts(self) -> bool:
        """Whether the job starts, as far as the rules know."""
        return self.report is not None and not any(
            d.outcome is Outcome.ERROR for d in self.findings
        )


@dataclass(frozen=True)
class Row:
    """One outcome over the versions.

    Attributes:
        kind: what it is about.
        knob: dotted; ``env.NAME`` for a variable; empty for a note.
        rule: the rule of a finding or a fault; None for the other kinds.
        values: of each version, in their order; None where it has none, or was not judged.
        decision: of the newest version that has one, for a finding or a fault.
        report: the one that has it; None where there is no decision.
    """

    kind: Kind
    knob: str
    rule: str | None
    values: tuple[Any, ...]
    decision: Decision | None = None
    report: Report | None = None


@dataclass(frozen=True)
class Matrix:
    """The answers for all versions.

    Attributes:
        package: whose versions were asked for.
        versions: the answers, oldest version first.
        common: findings and faults that every version has.
        differs: what is not the same with all of them.
    """

    package: Package
    versions: tuple[Version, ...]
    common: tuple[Row, ...]
    differs: tuple[Row, ...]

    @property
    def any_report(self) -> Report:
        """The newest answer: for what they have in common."""
        return next(v.report for v in reversed(self.versions) if v.report is not None)

    @property
    def has_finding(self) -> bool:
        """Whether a version has a finding, or refuses to read the configuration."""
        return any(version.fails for version in self.versions)


def judge_versions(
    package: Package,
    readings: Sequence[Reading],
    read: Callable[[Reading], tuple[Settings, int]],
    assumptions: Assumptions,
) -> Matrix:
    """Judge a configuration for each of several versions.

    Args:
        package: whose versions the readings differ in.
        readings: one for each version.
        read: the settings for a version, and the GPUs of the job.
        assumptions: what the settings do not say.

    Raises:
        InputError: the configuration cannot be judged for any of them.
    """
    versions: list[Version] = []
    failed: InputError | None = None
    for reading in readings:
        stack = reading.versions
        assert stack is not None
        try:
            settings, size = read(reading)
            versions.append(Version(stack, explain(settings, size, assumptions)))
        except InputError as error:
            failed = failed or error
            versions.append(Version(stack, None, str(error)))
    if failed is not None and all(v.report is None for v in versions):
        raise failed
    rows = list(_rows([v.report for v in versions]))
    judged = [n for n, v in enumerate(versions) if v.report is not None]
    same = [len({repr(row.values[n]) for n in judged}) == 1 for row in rows]
    return Matrix(
        package,
        tuple(versions),
        tuple(r for r, is_same in zip(rows, same, strict=True) if is_same and r.rule is not None),
        tuple(r for r, is_same in zip(rows, same, strict=True) if not is_same),
    )


def _rows(reports: Sequence[Report | None]) -> Iterator[Row]:
    """Every outcome of every version, findings first."""
    found: dict[tuple[Kind, str, str | None], dict[int, Any]] = {}
    by_rule: dict[tuple[Kind, str, str | None], tuple[Decision, Report]] = {}
    for number, report in enumerate(reports):
        if report is None:
            continue
        for d in [*report.findings, *faults(report)]:
            kind: Kind = "finding" if d.is_finding else "fault"
            key: tuple[Kind, str, str | None] = kind, d.knob, d.rule
            found.setdefault(key, {})[number] = d.outcome.value
            by_rule[key] = d, report
        for of, value in outcomes(report).items():
            if of.kind != "finding":
                found.setdefault((of.kind, of.knob, of.rule), {})[number] = value
        size = None if isinstance(report.buckets, str) else report.buckets.chunks[0].bucket_size
        found.setdefault(("bucket-size", "ddp.bucket_size", None), {})[number] = size
        for remark in report.remarks:
            found.setdefault(("note", remark, None), {})[number] = True
    order = get_args(Kind)
    # A finding says itself what becomes of its knob.
    told = {key[1] for key in found if key[0] == "finding"}
    rows = [each for each in found.items() if each[0][0] != "knob" or each[0][1] not in told]
    for about, values in sorted(rows, key=lambda each: order.index(each[0][0])):
        row = tuple(values.get(number) for number in range(len(reports)))
        decision, where = by_rule.get(about, (None, None))
        yield Row(*about, row, decision, where)
