"""Analyses one file and puts its ranks' figures together."""

from __future__ import annotations

import gc
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from overlapkit.errors import InputError
from overlapkit.trace.ahead import Ahead
from overlapkit.trace.byte_source import SQLITE_MAGIC, check_readable
from overlapkit.trace.collectives import (
    Collective,
    SlowedCompute,
    calls_by_group,
    collectives,
    slowed_compute,
)
from overlapkit.trace.diagnose import diagnose
from overlapkit.trace.dimensions import Known, Layout
from overlapkit.trace.events import Work
from overlapkit.trace.finding import Finding
from overlapkit.trace.measure import (
    Measured,
    Times,
    confidence_by_dimension,
    contributions,
    measure,
    span_of,
)
from overlapkit.trace.raw import Window
from overlapkit.trace.timeline import Timeline, timeline

STRAY = 0.01
"""Share of the busiest device's work below which another device of the same file is a stray."""


@dataclass(frozen=True)
class Options:
    """What to make of a file.

    Attributes:
        steps: "all", "N" or "A:B", as the user wrote it.
        layout: the run's parallel sizes, where a configuration tells them.
        owners: whether to say who makes up each part, as a comparison needs.
        timeline: whether to keep one step's spans for a picture.
        pictured: its place among the steps, as in a list; None: the one of median length.
        annotate: where to write the trace with tracks of exposed communication.
    """

    steps: str = "all"
    layout: Layout | None = None
    owners: bool = False
    timeline: bool = False
    pictured: int | None = None
    annotate: str | None = None


@dataclass
class RankReport:
    """One device of one file. Times are in nanoseconds.

    Attributes:
        rank: its rank; None until ranks are settled among all files.
        kernels: device events in all.
        whole: the whole trace.
        steps: the steps asked for; empty where the profile has none.
        confidence: how sure each dimension is.
        collectives: every sort of communication in the steps, the most exposed first.
        slowed: compute beside communication.
        findings: what the profile shows.
        calls: durations and exposed times of each group's collectives.
        owners: part to label to time per step; filled where asked.
        timeline: one step's spans; filled where asked.
    """

    path: str
    source: str
    device: int
    rank: int | None
    world_size: int | None
    gpu: str | None
    kernels: int
    whole: Times
    steps: list[Times]
    confidence: dict[str, str]
    collectives: list[Collective]
    slowed: SlowedCompute
    findings: list[Finding]
    calls: dict[str, tuple[list[int], list[int]]]
    warnings: list[str]
    owners: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    timeline: Timeline | None = None

    @property
    def measured(self) -> list[Times]:
        """The steps, or the whole trace where there are none."""
        return self.steps or [self.whole]


def read(path: str, ahead: Ahead | None = None) -> list[Work]:
    """The device work in a file of any kind that is known.

    Args:
        path: the file.
        ahead: processes that are reading it already.

    Raises:
        InputError: it is none of them, or cannot be read.
    """
    if check_readable(path).startswith(SQLITE_MAGIC):
        from overlapkit.trace.nsys import read_nsys

        return read_nsys(path)
    from overlapkit.trace.kineto import read_kineto

    return read_kineto(path, ahead)


def analyse_file(path: str, options: Options, ahead: Ahead | None = None) -> list[RankReport]:
    """A report per device of a file, which processes may be reading `ahead`.

    Raises:
        InputError: as `read`; or the file lacks the steps asked for.
    """
    # Millions of short-lived objects, none in a cycle.
    collecting = gc.isenabled()
    gc.disable()
    try:
        works = _without_strays(read(path, ahead))
    except MemoryError:
        raise InputError(f"{path}: not enough memory to read it") from None
    finally:
        if collecting:
            gc.enable()
    reports = []
    measured = []
    for work in works:
        layout = options.layout and options.layout.on(work.world_size, path)
        m = measure(work, Known(tuple(work.groups), layout, work.rank))
        measured.append(m)
        reports.append(_report(m, options, layout))
    if options.annotate is not None:
        from overlapkit.trace.annotate import write_annotated

        write_annotated(path, measured, options.annotate)
    return reports


def _report(m: Measured, options: Options, layout: Layout | None) -> RankReport:
    work = m.work
    windows = choose_steps(work.steps, options.steps, work.path)
    whole = m.times([work.whole])[0]
    steps = m.times(windows)
    scope_windows = windows or [work.whole]
    scope = span_of(scope_windows)
    # Operators of one name differ in their shapes, and the CPU's cores in what they share.
    slowed = SlowedCompute(0, 0.0, []) if work.source == "cpu" else slowed_compute(m, scope)
    warnings = list(work.warnings)
    confidence = confidence_by_dimension(m.traffic)
    if not work.steps:
        warnings.append("no steps are marked: the whole trace is taken as one")
    if any(level in ("guess", "unknown") for level in confidence.values()):
        doubtful = [d for d, level in confidence.items() if level in ("guess", "unknown")]
        warnings.append(
            f"process groups are not described: {', '.join(doubtful)} "
            f"{'is' if len(doubtful) == 1 else 'are'} assigned by operation; give --config"
        )
    report = RankReport(
        path=work.path,
        source=work.source,
        device=work.device,
        rank=work.rank,
        world_size=work.world_size,
        gpu=work.gpu,
        kernels=len(work),
        whole=whole,
        steps=steps,
        confidence=confidence,
        collectives=collectives(m, scope),
        slowed=slowed,
        findings=diagnose(m, scope_windows, steps or [whole], slowed, layout),
        calls=calls_by_group(m, scope),
        warnings=warnings,
    )
    if options.owners:
        report.owners = {
            part: {label: row.tolist() for label, row in rows.items()}
            for part, rows in contributions(m, scope_windows).items()
        }
    if options.timeline:
        times = report.measured
        shown = middle(times)[0] if options.pictured is None else times[options.pictured]
        report.timeline = timeline(m, shown.window)
    return report


def choose_steps(steps: Sequence[Window], asked: str, path: str) -> list[Window]:
    """The steps that "all", "N" or "A:B" (from A up to, not including, B) name by their numbers.

    Raises:
        InputError: it is none of these, or names no step of this file.
    """
    if asked == "all":
        return list(steps)
    match = re.fullmatch(r"(\d+)|(\d*):(\d*)", asked.strip())
    if match is None:
        raise InputError(f"--steps {asked}: give all, a step's number, or A:B (B not included)")
    single, low, high = match.groups()
    first = int(single or low or 0)
    last = int(single) + 1 if single else int(high) if high else 1 << 62
    chosen = [w for w in steps if w.number is not None and first <= w.number < last]
    if not chosen:
        numbers = [w.number for w in steps if w.number is not None]
        there = (
            f"it has the steps {min(numbers)} to {max(numbers)}" if numbers else "it has no steps"
        )
        raise InputError(f"--steps {asked}: no such step in {path}; {there}")
    return chosen


def middle(times: Sequence[Times]) -> list[Times]:
    """The step of median length, or the two around the median."""
    ordered = sorted(times, key=lambda t: t.step)
    half = len(ordered) // 2
    return [ordered[half]] if len(ordered) % 2 else [ordered[half - 1], ordered[half]]


def median(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0


def _without_strays(works: list[Work]) -> list[Work]:
    """Without devices that a process only touched, as with a context on device 0."""
    if len(works) < 2:
        return works
    busy = [int((work.end - work.start).sum()) for work in works]
    kept = [w for w, ns in zip(works, busy, strict=True) if ns >= STRAY * max(busy)]
    strays = [str(w.device) for w in works if w not in kept]
    if strays:
        for work in kept:
            work.warnings.append(
                f"device {', '.join(strays)} left out: under 1 % of the busiest device's work"
            )
    return kept


_IN_NAME = (
    re.compile(r"rank[-_.\s\[(=]*(\d{1,6})", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z0-9])(?:gpu|worker|r)[-_.]?(\d{1,6})(?![0-9])", re.IGNORECASE),
    re.compile(r"(?:^|[^0-9a-z.])(\d{1,5})$", re.IGNORECASE),
)


def rank_in_name(path: str) -> int | None:
    """The rank that a file's name tells: rank3, rank_3, gpu3, trace_3.json; None where none."""
    stem = re.sub(r"(?:\.(?:gz|json|sqlite|pt|trace|pt\.trace))+$", "", PurePath(path).name)
    for pattern in _IN_NAME:
        matches = pattern.findall(stem)
        if matches:
            return int(matches[-1])
    return None


def settle_ranks(reports: list[RankReport], rank_from: str | None) -> list[RankReport]:
    """Give every report its rank and sort them by it.

    Args:
        rank_from: "json", "name", or None: the first that tells for all files.

    Raises:
        InputError: the source asked for does not tell.
    """
    if rank_from == "json":
        for report in reports:
            if report.rank is None:
                raise InputError(
                    f"--rank-from json: {report.path} has no distributedInfo.rank; use name"
                )
    elif rank_from == "name" or any(r.rank is None for r in reports):
        named = {r.path: rank_in_name(r.path) for r in reports}
        missing = [path for path, rank in named.items() if rank is None]
        if rank_from == "name" and missing:
            raise InputError(
                f"--rank-from name: {missing[0]} names no rank; call it like rank3.json"
            )
        several = len(named) != len(reports)
        distinct = len(set(named.values())) == len(named)
        if not missing and (rank_from == "name" or (distinct and not several)):
            reports = [replace(r, rank=named[r.path]) for r in reports]
        else:
            alone = len(reports) == 1
            for position, report in enumerate(reports):
                report.rank = position
                if not alone:
                    report.warnings.append(
                        "no file tells its rank: ranks are the order of files and devices"
                    )
    seen: dict[tuple[int | None, int], str] = {}
    for report in reports:
        key = (report.rank, report.device)
        if key in seen:
            report.warnings.append(f"rank {report.rank} is also that of {seen[key]}")
        seen[key] = report.path
    return sorted(reports, key=lambda r: (r.rank or 0, r.device))
