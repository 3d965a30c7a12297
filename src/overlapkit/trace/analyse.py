"""Reads and analyses the traces of one run."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from overlapkit.errors import InputError
from overlapkit.output.progress import progress
from overlapkit.processes import WorkerLost, in_workers
from overlapkit.trace.diagnose.diagnosis import Case
from overlapkit.trace.diagnose.framework import detect
from overlapkit.trace.diagnose.profile import diagnose
from overlapkit.trace.measure.collectives import (
    SlowedCompute,
    calls_by_group,
    collectives,
    slowed_compute,
)
from overlapkit.trace.measure.cut_step import ends_in_step
from overlapkit.trace.measure.dimensions import Confidence, Known, Layout
from overlapkit.trace.measure.found_steps import find_steps
from overlapkit.trace.measure.group_evidence import communicators_of
from overlapkit.trace.measure.self_check import self_check
from overlapkit.trace.measure.step_times import (
    WorkSpans,
    confidence_by_dimension,
    contributions,
    followed_steps,
    measure,
    span_of,
)
from overlapkit.trace.measure.units import A_UNIT, StepsFrom, unit_of
from overlapkit.trace.measure.unrecognized import effects, remarks, unrecognized
from overlapkit.trace.rank_report import Options, RankReport, middle_of
from overlapkit.trace.read.byte_source import SQLITE_MAGIC, check_readable
from overlapkit.trace.read.device_work import Work
from overlapkit.trace.read.files.archives import unpacked
from overlapkit.trace.read.files.folders import REPORTS, room_for_exports
from overlapkit.trace.read.parallel_read import Ahead
from overlapkit.trace.read.recorded import Window
from overlapkit.trace.read.stated import NOTHING_STATED, Stated
from overlapkit.trace.timeline import timeline

if TYPE_CHECKING:
    from overlapkit.config.run import Settings


def layout_of(settings: Settings) -> Layout:
    """The parallel sizes of a run."""
    from overlapkit.config.run import build_run

    model = build_run(settings).model
    return Layout(
        tp=model.tensor_model_parallel_size,
        pp=model.pipeline_model_parallel_size,
        cp=model.context_parallel_size,
        ep=model.expert_model_parallel_size,
        vpp=model.virtual_pipeline_model_parallel_size,
    )


def analyse(paths: Sequence[str], options: Options, ahead: Ahead | None = None) -> list[RankReport]:
    """A report for each device in each file, in the order of the files.

    Several files are read in parallel.

    Args:
        paths: the files.
        options: what to report.
        ahead: processes that already read the only file.

    Raises:
        InputError: of the first file that cannot be read.
    """
    return [report for reports in analyse_each(paths, options, ahead) for report in reports]


def analyse_each(
    paths: Sequence[str],
    options: Options | Sequence[Options],
    ahead: Ahead | None = None,
    *,
    forking: bool = True,
) -> list[list[RankReport]]:
    """The reports of `analyse`, grouped by file.

    Args:
        paths, ahead: see `analyse`.
        options: what to report, of all files or of each.
        forking: whether several files may be read in processes. In a program with threads, a
            forked process can wait forever for a lock that another thread has.
    """
    of_each = [options] * len(paths) if isinstance(options, Options) else options
    with room_for_exports(paths) as room:
        asked = [replace(each, room=room) for each in of_each]
        return _analyse_each(paths, asked, ahead, forking=forking)


def _analyse_each(
    paths: Sequence[str], options: Sequence[Options], ahead: Ahead | None, *, forking: bool
) -> list[list[RankReport]]:
    calls = list(zip(paths, options, strict=True))
    if len(paths) == 1 or not forking:
        return [analyse_file(path, asked, ahead) for path, asked in calls]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[int, list[RankReport]] = {}
    try:
        with progress(len(paths), "Reading traces") as advance:
            for index, reports in in_workers(analyse_file, calls, cores or 1):
                found[index] = reports
                advance()
    except WorkerLost:
        raise InputError(
            "the system ended a process that was reading a trace, most likely for lack of "
            "memory; give fewer files at a time"
        ) from None
    return [found[index] for index in sorted(found)]


STRAY = 0.01
"""Share of the busiest device's work below which another device in the same file is omitted."""


def read(
    path: str,
    ahead: Ahead | None = None,
    stated: Stated = NOTHING_STATED,
    room: str | None = None,
) -> list[Work]:
    """The device work in a file, for each device that has any.

    Args:
        path: the file, of any supported format.
        ahead: processes that already read it.
        stated: what the user says of kernels.
        room: a temporary folder for an export, or for a database in an archive.

    Raises:
        InputError: the format is not supported, or the file cannot be read.
    """
    is_database = check_readable(path).startswith(SQLITE_MAGIC)
    if path.endswith(REPORTS):
        from overlapkit.trace.read.files.nsys_report import read_report

        return read_report(path, stated, room)
    if is_database:
        from overlapkit.trace.read.nsys import read_nsys

        with unpacked(path, room) as place:
            works = read_nsys(place, stated)
        for work in works:
            work.path = path
        return works
    from overlapkit.trace.read.kineto import read_kineto

    return read_kineto(path, ahead, stated)


def analyse_file(path: str, options: Options, ahead: Ahead | None = None) -> list[RankReport]:
    """A report for each device in a file.

    Args:
        path: the file.
        options: what to report.
        ahead: processes that already read it.

    Raises:
        InputError: as `read`; or the file does not contain the requested steps.
    """
    # Millions of short-lived objects, none in a cycle.
    collecting = gc.isenabled()
    gc.disable()
    try:
        works = _without_strays(read(path, ahead, options.stated, options.room))
    except MemoryError:
        raise InputError(f"{path}: not enough memory to read it") from None
    finally:
        if collecting:
            gc.enable()
    reports = []
    measured = []
    told = communicators_of(works)
    for work in works:
        steps_from, kernels = find_steps(work)
        layout = options.layout and options.layout.on(work.world_size, path)
        groups = tuple(work.groups)
        known = Known(groups, layout, work.rank, stated=options.stated, groups_told=told)
        m = measure(work, known)
        measured.append(m)
        gpus = sum(w.process == work.process for w in works) if work.process is not None else 1
        if kernels:
            unit = unit_of(steps_from, trains=detect(work, m.traffic, configured=False).trains)
            work.warnings.append(
                f"no steps are marked: the same sequence of {kernels:,} kernels repeats, and each "
                f"repetition is {A_UNIT[unit]}"
            )
        reports.append(_report(m, options, layout, steps_from, gpus))
    if options.annotate is not None:
        from overlapkit.trace.annotate import write_annotated

        write_annotated(path, measured, options.annotate)
    return reports


def _report(
    m: WorkSpans,
    options: Options,
    layout: Layout | None,
    steps_from: StepsFrom | None,
    gpus: int,
) -> RankReport:
    work = m.work
    windows = choose_steps(work.steps, options.steps, work.path)
    if options.steps == "all" and steps_from == "ranges" and ends_in_step(work):
        work.warnings.append(
            f"the recording ends in {windows.pop().name}, which lacks kernels of the steps before "
            "it: omitted"
        )
    whole = m.times([work.whole])[0]
    steps = m.times(windows)
    measured = windows or [work.whole]
    scope = span_of(measured)
    # On a CPU, operators of the same name have different shapes, and cores share resources.
    slowed = SlowedCompute(0, 0.0, []) if work.source == "cpu" else slowed_compute(m, scope)
    communication = collectives(m, scope)
    confidence = confidence_by_dimension([c.traffic for c in communication])
    framework = detect(work, m.traffic, configured=layout is not None)
    unit = unit_of(steps_from, trains=framework.trains)
    check = self_check(m, windows, repeated=steps_from == "repetition", unit=unit)
    found = unrecognized(m, scope)
    starts = {w.start for w in work.steps}
    followed = [w.end in starts for w in windows]
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
        collectives=communication,
        slowed=slowed,
        diagnoses=diagnose(
            Case(
                m=m,
                windows=measured,
                times=steps or [whole],
                scope=scope,
                slowed=slowed,
                layout=layout,
                framework=framework,
                marked=steps_from is not None,
                unit=unit,
                followed=followed_steps(followed, len(measured)),
                are_followed=not followed or 2 * sum(followed) >= len(measured),
            )
        )
        if check.steps_stand_for_trace
        else [],
        check=check,
        framework=framework,
        steps_from=steps_from,
        followed=followed,
        process=work.process,
        gpus=gpus,
        group_sizes=Known(tuple(work.groups)).sizes(),
        calls=calls_by_group(m, scope),
        unrecognized=found,
        stated=options.stated.texts,
        warnings=[
            *_warnings(work, confidence),
            *remarks(found, scope),
            *effects(options.stated, m),
        ],
    )
    if options.owners:
        inside = scope.within(work.start, work.start + 1)
        report.kernels_per_step = float(inside.sum()) / len(measured)
        report.owners = {
            part: {label: row.tolist() for label, row in rows.items()}
            for part, rows in contributions(m, measured).items()
        }
    if options.packed:
        from overlapkit.trace.merge import pack

        report.packed = pack(report)
    if options.timeline:
        times = report.measured
        shown = (
            middle_of(times, key=lambda t: t.step)[0]
            if options.pictured is None
            else times[options.pictured]
        )
        report.timeline = timeline(m, shown.window)
    return report


def _warnings(work: Work, confidence: Mapping[str, Confidence]) -> list[str]:
    """What was omitted or assumed, in reading and in measuring."""
    warnings = list(work.warnings)
    if not work.steps:
        warnings.append("no steps are marked: all figures are of the whole trace")
    guessed = [d for d, level in confidence.items() if level == "guess"]
    if guessed:
        warnings.append(
            f"process groups are not described: {', '.join(guessed)} "
            f"{'is' if len(guessed) == 1 else 'are'} assigned by operation; give --config or "
            "--group"
        )
    if confidence.get("other") == "unknown":
        warnings.append(
            "nothing tells which dimension some communication belongs to: it is listed as other; "
            "give --config or --group"
        )
    return warnings


def choose_steps(steps: Sequence[Window], requested: str, path: str) -> list[Window]:
    """The requested steps.

    Args:
        steps: every step in the file.
        requested: "all", the number of a step, or "A:B" (from A up to, but not including, B).
        path: the file, for messages.

    Raises:
        InputError: the request is none of these, or the file has no such step.
    """
    if requested == "all":
        return list(steps)
    match = re.fullmatch(r"(\d{1,18})|(\d{0,18}):(\d{0,18})", requested.strip())
    if match is None:
        raise InputError(
            f"--steps {requested}: give all, the number of a step, or A:B (B not included)"
        )
    single, low, high = match.groups()
    first = int(single or low or 0)
    last = int(single) + 1 if single else int(high) if high else 1 << 62
    chosen = [w for w in steps if w.number is not None and first <= w.number < last]
    if not chosen:
        numbers = [w.number for w in steps if w.number is not None]
        existing = (
            f"it has steps {min(numbers)} to {max(numbers)}" if numbers else "it has no steps"
        )
        raise InputError(f"--steps {requested}: no such step in {path}; {existing}")
    return chosen


def _without_strays(works: list[Work]) -> list[Work]:
    """Without devices that a process hardly used, such as a CUDA context on device 0."""
    if len(works) < 2:
        return works
    busy = [int((work.end - work.start).sum()) for work in works]
    kept = [w for w, ns in zip(works, busy, strict=True) if ns >= STRAY * max(busy)]
    devices = {work.device for work in kept}
    strays = [
        f"{w.device} (of another process)" if w.device in devices else str(w.device)
        for w in works
        if w not in kept
    ]
    if strays:
        for work in kept:
            work.warnings.append(
                f"device {', '.join(strays)} omitted: less than 1 % of the busiest device's work"
            )
    return kept
