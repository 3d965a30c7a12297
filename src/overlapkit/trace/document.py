"""The JSON document of `overlapkit trace`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from overlapkit import __version__
from overlapkit.errors import InputError
from overlapkit.explain.stack_document import JobStack, stack_document
from overlapkit.output.numbers import us_of_ns
from overlapkit.output.printable import all_printable
from overlapkit.trace.diagnose.contradictions import contradictions
from overlapkit.trace.diagnose.diagnosis import Diagnosis
from overlapkit.trace.diagnose.expected import Expected, expected_of, spoken, tied
from overlapkit.trace.diagnose.ranks import diagnoses_of
from overlapkit.trace.labels import labels_of
from overlapkit.trace.measure.units import Unit
from overlapkit.trace.rank_document import TraceRank, rank_of
from overlapkit.trace.rank_report import RankReport
from overlapkit.trace.ranks import Across, across, steps_by_rank
from overlapkit.trace.read.host.marks import Framework

if TYPE_CHECKING:
    from overlapkit.config.run import Settings


class TraceWaiting(Struct, frozen=True, kw_only=True):
    """How long one rank waits for others in collectives, and others for it."""

    waiting_us: Annotated[float, Meta(description="time that it waits, per step")]
    exposed_waiting_us: Annotated[
        float, Meta(description="the part that can be exposed communication, per step")
    ]
    caused_us: Annotated[float, Meta(description="time that other ranks wait for it, per step")]
    last_to_join: Annotated[int, Meta(description="number of collectives that it joined last")]
    matched: Annotated[
        int, Meta(description="number of collectives that were matched with those of other ranks")
    ]


class TraceAcrossRanks(Struct, frozen=True, kw_only=True):
    """Several ranks compared.

    Waiting is determined without comparing clocks. The shortest duration of a collective among its
    ranks is the transfer; whatever is longer on another rank is waiting.
    """

    ranks: Annotated[int, Meta(description="number of ranks")]
    slowest_rank: Annotated[int, Meta(description="the rank with the longest median step")]
    spread_us: Annotated[float, Meta(description="longest minus shortest median step")]
    spread_pct: Annotated[float, Meta(description="the same in percent of the shortest")]
    step_us: Annotated[dict[str, float], Meta(description="each rank, and its median step")]
    late_rank: Annotated[
        int | None,
        Meta(description="the rank that the others wait for; `null` where there is none"),
    ]
    exposed_waiting_pct: Annotated[
        float | None,
        Meta(
            description="exposed waiting in percent of all exposed communication; `null` where no "
            "collectives could be matched"
        ),
    ]
    waiting: Annotated[
        dict[str, TraceWaiting],
        Meta(description="each rank, and its waiting; empty where no collectives could be matched"),
    ]
    notes: Annotated[list[str], Meta(description="what could not be compared")]


class TraceDiagnosis(Struct, frozen=True, kw_only=True):
    """One cause of lost time."""

    id: Annotated[str, Meta(description="stable name, listed under Diagnoses")]
    rule: Annotated[
        str | None, Meta(description="id of the rule of `overlapkit explain` that applies")
    ]
    message: Annotated[str, Meta(description="what the profile shows, in one sentence")]
    evidence: Annotated[dict[str, Any], Meta(description="the figures that it rests on")]
    cost_us: Annotated[
        float,
        Meta(description="time per step that it accounts for; without steps, in the trace"),
    ]
    remedy: Annotated[str, Meta(description="what to try")]
    confidence: Annotated[
        Literal["likely", "possible"],
        Meta(description="how certain it is: `likely` or `possible`"),
    ]
    ranks: Annotated[list[int], Meta(description="the ranks whose profiles show it")]
    devices: Annotated[
        list[int],
        Meta(
            description="where one process uses several GPUs: the devices whose work shows it; "
            "empty otherwise"
        ),
    ] = []
    shared_us: Annotated[
        dict[str, float],
        Meta(
            description="other diagnoses that count some of this time too, by `id`, and how much "
            "at most: the costs of diagnoses do not add up where this is not empty"
        ),
    ] = {}
    longer_steps: Annotated[
        list[str],
        Meta(
            description="steps that are longer than the others, by their names, where the others "
            "alone would not show it; empty otherwise"
        ),
    ] = []


class TraceFramework(Struct, frozen=True, kw_only=True):
    """The software that ran, whose settings the remedies name."""

    name: Annotated[
        Framework | None, Meta(description="its name; `null` where the profile does not tell it")
    ]
    evidence: Annotated[list[str], Meta(description="what tells it")]


class TraceDocument(Struct, frozen=True, kw_only=True):
    """Where the time of each step goes, and what communication is left exposed."""

    schema: Annotated[
        Literal["overlapkit/trace/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/trace/v1"
    version: Annotated[str, Meta(description="of overlapkit")] = __version__
    files: Annotated[list[str], Meta(description="the traces that were read")]
    gpu: Annotated[str | None, Meta(description="name of the GPU; `null` where not recorded")]
    world_size: Annotated[
        int | None, Meta(description="number of ranks of the job; `null` where not recorded")
    ]
    stack: Annotated[
        JobStack | None,
        Meta(description="the versions that the configuration is for; `null` without `--config`"),
    ]
    stated: Annotated[
        list[str],
        Meta(description="what `--comm` and `--group` say of communication, as it was given"),
    ]
    framework: Annotated[
        TraceFramework, Meta(description="the software that ran, as far as the profile tells")
    ]
    doubts: Annotated[
        list[str],
        Meta(
            description="why figures of this report cannot be relied on, each once; empty where "
            "nothing is below its threshold"
        ),
    ]
    expected: Annotated[
        Expected | None,
        Meta(
            description="what the configuration makes effective; `null` without `--config`, and "
            "where it is not known"
        ),
    ]
    contradictions: Annotated[
        list[str],
        Meta(
            description="with `--config`: what the configuration says and the profile shows "
            "otherwise"
        ),
    ]
    warnings: Annotated[list[str], Meta(description="what was omitted or assumed, each once")]
    notes: Annotated[
        list[str],
        Meta(
            description="of `warnings`, those about no rank: files that were left out, the "
            "configuration"
        ),
    ]
    ranks: Annotated[list[TraceRank], Meta(description="the ranks, in order")]
    across_ranks: Annotated[
        TraceAcrossRanks | None, Meta(description="the ranks compared; `null` for a single rank")
    ]
    diagnoses: Annotated[
        list[TraceDiagnosis], Meta(description="the causes of lost time, the costliest first")
    ]

    @property
    def has_steps(self) -> bool:
        """Whether figures are per step; otherwise they are of the whole trace."""
        return any(rank.steps for rank in self.ranks)

    @property
    def unit(self) -> Unit:
        """What its steps are."""
        return next((rank.unit for rank in self.ranks if rank.steps), "step")

    @property
    def slowest(self) -> TraceRank:
        """The rank with the longest median step, which reports describe in detail."""
        return max(self.ranks, key=lambda rank: rank.median.step_us)

    def detailed(self, number: int | None) -> TraceRank:
        """The rank that a report describes in detail.

        Args:
            number: which one the user asks for; None for the slowest. Of several traces of a rank,
                the one with the longest median step is described.

        Raises:
            InputError: there is no such rank.
        """
        if number is None:
            return self.slowest
        found = [rank for rank in self.ranks if rank.rank == number]
        if not found:
            numbers = sorted({rank.rank for rank in self.ranks})
            listed = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
            missing = len(numbers) < numbers[-1] - numbers[0] + 1
            of = f"ranks {listed}" if len(numbers) > 1 else f"rank {listed}"
            raise InputError(
                f"--rank {number}: no such rank in the traces; they are of {of}"
                f"{', with gaps' if missing else ''}"
            )
        return max(found, key=lambda rank: rank.median.step_us)


def trace_document(
    reports: Sequence[RankReport],
    settings: Settings | None = None,
    notes: Sequence[str] = (),
    *,
    explained: bool = True,
) -> TraceDocument:
    """The document of ranks that are in order.

    Texts from the files are made printable.

    Args:
        reports: one for each rank.
        settings: the run's configuration, where it was given.
        notes: what else was in the folders and archives that were named.
        explained: whether diagnoses say what the configuration has and why; otherwise it is only
            compared with the profile, and remedies are in its words.
    """
    about = list(notes)
    stack = expected = None
    if settings is not None:
        from overlapkit.config.remarks import remarks

        about += remarks(settings) if explained else []
        stack = stack_document(settings.basis)
        expected, why = expected_of(
            settings, next((r.world_size for r in reports if r.world_size), None)
        )
        about += [why] if why is not None and explained else []
    return document_of(reports, stack, expected, about, explained=explained)


def document_of(
    reports: Sequence[RankReport],
    stack: JobStack | None,
    expected: Expected | None,
    notes: Sequence[str],
    *,
    explained: bool = True,
) -> TraceDocument:
    """The document of ranks that are in order.

    Args:
        reports: one for each rank.
        stack: the versions that the configuration is for; None without one.
        expected: what the configuration makes effective; None where that is not known.
        notes: warnings about no rank.
        explained: as in `trace_document`.
    """
    together = across(reports)
    unlike = [] if expected is None else contradictions(expected, reports)
    # A configuration that is not this run's says nothing about it.
    own = None if unlike else expected
    diagnoses = (tied if explained else spoken)(diagnoses_of(reports, together), own)
    return all_printable(
        TraceDocument(
            files=list(dict.fromkeys(r.path for r in reports)),
            gpu=next((r.gpu for r in reports if r.gpu), None),
            world_size=next((r.world_size for r in reports if r.world_size), None),
            stated=reports[0].stated,
            stack=stack,
            framework=_framework(reports),
            doubts=_by_rank(reports, lambda report: report.check.doubts),
            expected=expected,
            contradictions=unlike,
            warnings=[*merged_warnings(reports), *notes],
            notes=list(notes),
            ranks=[rank_of(r) for r in reports],
            across_ranks=None if together is None else _across_ranks(together, reports),
            diagnoses=[_diagnosis(d) for d in diagnoses],
        )
    )


def _framework(reports: Sequence[RankReport]) -> TraceFramework:
    """That of the first rank that tells one."""
    told = next((r.framework for r in reports if r.framework.name), None)
    if told is None:
        return TraceFramework(name=None, evidence=[])
    return TraceFramework(name=told.name, evidence=list(told.evidence))


def merged_warnings(reports: Sequence[RankReport]) -> list[str]:
    """Each warning once, with the ranks that it concerns where there are several."""
    return _by_rank(reports, lambda report: report.warnings)


def _by_rank(
    reports: Sequence[RankReport], texts: Callable[[RankReport], Sequence[str]]
) -> list[str]:
    """Each text once, with the ranks that it concerns where there are several."""
    where: dict[str, list[RankReport]] = {}
    for report in reports:
        for text in texts(report):
            where.setdefault(text, []).append(report)
    if len(reports) == 1:
        return list(where)
    return [
        text if len(of) == len(reports) else f"{labels_of(of, reports)}: {text}"
        for text, of in where.items()
    ]


def _across_ranks(a: Across, reports: Sequence[RankReport]) -> TraceAcrossRanks:
    steps = steps_by_rank(reports)
    return TraceAcrossRanks(
        ranks=len(a.step_ns),
        slowest_rank=a.slowest,
        spread_us=us_of_ns(a.spread_ns),
        spread_pct=round(a.spread_pct, 3),
        step_us={str(rank): us_of_ns(ns) for rank, ns in a.step_ns.items()},
        late_rank=a.late_rank,
        exposed_waiting_pct=None
        if a.exposed_waiting_pct is None
        else round(a.exposed_waiting_pct, 4),
        waiting={
            str(rank): TraceWaiting(
                waiting_us=us_of_ns(w.waiting_ns / steps[rank]),
                exposed_waiting_us=us_of_ns(w.exposed_ns / steps[rank]),
                caused_us=us_of_ns(w.caused_ns / steps[rank]),
                last_to_join=w.last_to_join,
                matched=w.matched,
            )
            for rank, w in a.waiting.items()
        },
        notes=a.notes,
    )


def _diagnosis(d: Diagnosis) -> TraceDiagnosis:
    return TraceDiagnosis(
        id=d.id,
        rule=d.rule,
        message=d.message,
        evidence=d.evidence,
        cost_us=d.cost_us,
        remedy=d.advice,
        confidence=d.confidence,
        ranks=d.ranks,
        devices=d.devices,
        shared_us=d.shared_us,
        longer_steps=d.longer_steps,
    )
