"""One of two runs that are compared: its median step, averaged over its ranks."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from overlapkit.trace.measure.step_times import PARTS, Part, followed_steps
from overlapkit.trace.measure.units import StepsFrom, Unit
from overlapkit.trace.rank_report import RankReport, middle_of
from overlapkit.trace.read.device_work import Source
from overlapkit.trace.read.host.engines import batches

LEAST_STEPS = 3
"""Steps from which a run has a spread."""

MANY_STEPS = 8
"""Steps from which the middle half of them tells how much they differ. The middle half of three is
half of what they differ by, and the medians of two such runs differ by more than that by chance in
one of three cases."""

TWO_STEPS = 3
"""Multiple of the difference of two steps that the means of two such runs hardly differ by."""


Counted = Literal["ranks", "GPUs"]
"""What a run has several of: processes with a GPU each, or GPUs of one process."""


@dataclass(frozen=True)
class Side:
    """One run, averaged over its ranks. Times are in nanoseconds.

    Attributes:
        name: the file or folder, as the user named it.
        ranks: number of ranks that were read; of a process with several GPUs, of these.
        counted: what `ranks` counts.
        gpu, world_size, source: as in `Work`.
        steps: the length of each step, or that of the whole trace. Where at least half of the steps
            are followed by another one, only those: the rest lack the time to its start.
        recorded: number of steps that were recorded by every rank.
        steps_from: what marks the steps; None where a rank has none.
        unit: what they are.
        batches: of an engine's iterations, how often each batch ran; empty otherwise.
        step: the length of the median step.
        parts: its exclusive parts, which add up to `step`.
        owners: part to label to time; the labels of a part add up to it.
        exposed: exposed communication by dimension in that step.
        spread: range of the middle half of the steps; None for fewer than three.
        kernels: number of device events per rank and step.
        between: mean time from the end of a step to the start of the next, which is in no step.
        doubts: why the steps cannot be relied on.
        warnings: what to keep in mind.
    """

    name: str
    ranks: int
    counted: Counted
    gpu: str | None
    world_size: int | None
    source: Source
    steps: list[float]
    recorded: int
    steps_from: StepsFrom | None
    unit: Unit
    batches: Counter[str]
    step: float
    parts: dict[Part, float]
    owners: dict[Part, dict[str, float]]
    exposed: dict[str, float]
    spread: float | None
    kernels: float
    between: float
    doubts: list[str]
    warnings: list[str]

    @property
    def noise(self) -> float:
        """How much the steps of the run differ by themselves; 0 for a single one."""
        if self.spread is not None and len(self.steps) >= MANY_STEPS:
            return self.spread
        span = max(self.steps) - min(self.steps)
        return TWO_STEPS * span if len(self.steps) == 2 else span


_Place = tuple[RankReport, int]
"""A step of one rank: its report, and its index there."""


def side_of(name: str, reports: Sequence[RankReport]) -> Side:
    """The median step of one run, averaged over its ranks step by step.

    Averages of parts add up to the average of the step. Medians of parts would not.
    """
    by_rank = _steps_by_rank(reports)
    aligned = _aligned(by_rank)
    ranks = len(by_rank)
    steps = [sum(r.measured[i].step for r, i in places) / ranks for places in aligned]
    middle = middle_of(range(len(steps)), key=steps.__getitem__)
    parts, owners, exposed = _mean([place for i in middle for place in aligned[i]])
    spread = None
    if len(steps) >= LEAST_STEPS:
        low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
        spread = high - low
    return Side(
        name=name,
        ranks=ranks,
        counted="GPUs" if any(r.gpus > 1 for r in reports) else "ranks",
        gpu=next((r.gpu for r in reports if r.gpu), None),
        world_size=next((r.world_size for r in reports if r.world_size), None),
        source=reports[0].source,
        steps=steps,
        recorded=min(_recorded(reports).values()),
        steps_from=_steps_from(reports),
        unit=next((r.unit for r in reports if r.steps), "step"),
        batches=batches([t.window.name for r in reports for t in r.steps])
        if _steps_from(reports) == "iterations"
        else Counter(),
        step=sum(parts.values()),
        parts=parts,
        owners=owners,
        exposed=exposed,
        spread=spread,
        kernels=sum(r.kernels_per_step for r in reports) / len(reports),
        between=sum(_between(r) for r in reports) / len(reports),
        doubts=_doubts(reports),
        warnings=_warnings(name, reports, by_rank, len(steps)),
    )


def _steps_by_rank(reports: Sequence[RankReport]) -> list[list[_Place]]:
    """The steps of each rank. Several cycles of a rank are one rank."""
    by_rank: dict[tuple[object, ...], list[_Place]] = {}
    for r in reports:
        by_rank.setdefault(_key(r), []).extend(
            (r, i) for i in followed_steps(r.followed, len(r.measured))
        )
    return list(by_rank.values())


def _key(report: RankReport) -> tuple[object, ...]:
    """What is the same for the cycles of one rank."""
    same = (report.rank, report.device)
    return same if report.cycle is not None else (*same, report.path)


def _recorded(reports: Sequence[RankReport]) -> dict[tuple[object, ...], int]:
    """The number of steps of each rank."""
    counts: dict[tuple[object, ...], int] = {}
    for r in reports:
        counts[_key(r)] = counts.get(_key(r), 0) + len(r.measured)
    return counts


def _aligned(by_rank: Sequence[Sequence[_Place]]) -> list[list[_Place]]:
    """For each step that every rank has, where each rank has it: by number, or else in order."""
    numbered = [{r.measured[i].window.number: (r, i) for r, i in places} for places in by_rank]
    if all(
        None not in numbers and len(numbers) == len(places)
        for numbers, places in zip(numbered, by_rank, strict=True)
    ):
        common = [n for n in numbered[0] if all(n in numbers for numbers in numbered)]
        if common:
            return [[numbers[n] for numbers in numbered] for n in common]
    count = min(len(places) for places in by_rank)
    return [[places[i] for places in by_rank] for i in range(count)]


def _mean(
    places: Sequence[_Place],
) -> tuple[dict[Part, float], dict[Part, dict[str, float]], dict[str, float]]:
    """The mean over steps of ranks: parts, their owners, exposed by dimension."""
    weight = 1.0 / len(places)
    parts = dict.fromkeys(PARTS, 0.0)
    owners: dict[Part, dict[str, float]] = {part: {} for part in PARTS}
    exposed: dict[str, float] = {}
    for report, i in places:
        for part, value in report.measured[i].parts.items():
            parts[part] += value * weight
        for dimension, times in report.measured[i].by_dimension.items():
            exposed[dimension] = exposed.get(dimension, 0.0) + times.exposed * weight
        for part, rows in report.owners.items():
            for label, row in rows.items():
                if row[i]:
                    owners[part][label] = owners[part].get(label, 0.0) + row[i] * weight
    return parts, owners, exposed


def _between(report: RankReport) -> float:
    windows = [t.window for t in report.measured]
    gaps = [max(0, b.start - a.end) for a, b in itertools.pairwise(windows)]
    return sum(gaps) / len(gaps) if gaps else 0.0


def _steps_from(reports: Sequence[RankReport]) -> StepsFrom | None:
    found = {r.steps_from for r in reports}
    if None in found:
        return None
    return found.pop() if len(found) == 1 else "repetition"


def _doubts(reports: Sequence[RankReport]) -> list[str]:
    """Why the steps do not stand for the run, each once."""
    shares = [r.check.work_in_steps for r in reports if not r.check.steps_stand_for_trace]
    least = min((share for share in shares if share is not None), default=None)
    if least is None:
        return []
    return [f"only {100 * least:.0f} % of the device's work is inside its {reports[0].unit}s"]


def _warnings(
    name: str, reports: Sequence[RankReport], by_rank: Sequence[Sequence[_Place]], steps: int
) -> list[str]:
    warnings = []
    if any(len(places) != steps for places in by_rank):
        warnings.append(
            f"{name}: ranks have different steps; only the {steps} that all of them have are used"
        )
    for what, values in (
        ("GPUs", sorted({r.gpu for r in reports if r.gpu})),
        ("world sizes", sorted({str(r.world_size) for r in reports if r.world_size})),
    ):
        if len(values) > 1:
            warnings.append(f"{name}: its traces state different {what} ({', '.join(values)})")
    return warnings
