"""Reads Kineto's JSON, as torch.profiler writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from overlapkit.errors import InputError
from overlapkit.trace.read.byte_source import ByteSource
from overlapkit.trace.read.clean_columns import Recording, finish_columns
from overlapkit.trace.read.device_work import COMMUNICATION, Launches, Work, sorted_launches
from overlapkit.trace.read.files.foreign import name_of_tracks
from overlapkit.trace.read.gloo import with_gloo
from overlapkit.trace.read.gloo_launches import add_gloo_origins
from overlapkit.trace.read.host.launched import add_origins, finish_marks
from overlapkit.trace.read.host.steps import iterations_on, project
from overlapkit.trace.read.kineto_events import DigitsNeeded, ranks_of, read_events
from overlapkit.trace.read.merged import rank_in, tags_of
from overlapkit.trace.read.parallel_read import Ahead, read_ahead
from overlapkit.trace.read.recorded import Group, Reading
from overlapkit.trace.read.stated import NOTHING_STATED, Stated
from overlapkit.trace.read.timestamp_columns import column_ns, whole_numbers
from overlapkit.trace.read.timestamps import integer


def read_kineto(
    path: str, ahead: Ahead | None = None, stated: Stated = NOTHING_STATED
) -> list[Work]:
    """The device work in a file, one `Work` for each device that has any.

    A file without device work is read as a CPU trace: gloo's ranges are its communication, and the
    outermost operators its compute.

    Args:
        path: the file.
        ahead: processes that already read it.
        stated: what the user says of kernels.

    Raises:
        InputError: it is not a trace, is too damaged, or contains neither device work nor
            operators.
    """
    reading = _read_device(path, ahead)
    if reading.devices:
        if tags := tags_of(path, reading):
            return _of_ranks(path, tags, stated)
        works = works_of(path, reading, stated)
        return _with_gloo(path, reading, works) if _uses_gloo(reading) else works
    if not reading.host.names:
        reading = _read_here(path, want_host=True)
    if reading.devices:
        return works_of(path, reading, stated)
    if reading.host.names:
        if tags := tags_of(path, reading):
            return _of_cpu_ranks(path, tags)
        work = _on_cpu(path, reading)
        if work is not None:
            return [work]
    raise InputError(
        f"{path}: is {known}"
        if (known := name_of_tracks(ByteSource(path))) is not None
        else f"{path}: contains no device work and no operators; record with ProfilerActivity.CUDA"
    )


def _read_device(path: str, ahead: Ahead | None) -> Reading:
    """What other processes have read, if they could; otherwise what is read here."""
    try:
        reading = ahead.collect() if ahead is not None else None
    except DigitsNeeded:
        again = read_ahead(path, exact=True)
        reading = again.collect() if again is not None else None
    return reading if reading is not None else _read_here(path)


def _read_here(path: str, *, want_host: bool = False, tag: str | None = None) -> Reading:
    try:
        return read_events(path, want_host=want_host, tag=tag)
    except DigitsNeeded:
        return read_events(path, want_host=want_host, exact=True, tag=tag)


def _of_ranks(path: str, tags: Sequence[str], stated: Stated) -> list[Work]:
    """The work in a file of several ranks, each with its own launches and steps."""
    works = []
    for process, tag in enumerate(tags, start=1):
        for work in works_of(path, _read_here(path, tag=tag), stated):
            # The head of the file is that of one of them.
            work.rank, work.process = rank_in(tag), process
            works.append(work)
    return works


def _on_cpu(path: str, reading: Reading) -> Work | None:
    """The work of a CPU rank; None where there is none."""
    from overlapkit.trace.read.cpu import cpu_work

    found = cpu_work(path, reading.host, reading.host_steps, groups_of(reading.metadata))
    if found is None:
        return None
    work, ranges = found
    marks = finish_marks(reading.marks, list(reading.names), reading.threads)
    work.host_steps = reading.host_steps.windows()
    work.frameworks = reading.marks.frameworks
    work.data_waits = marks.waiting_for_data()
    work.calls = list(reading.calls)
    add_gloo_origins(work, ranges, reading.host, marks, reading.threads)
    _describe(work, reading)
    return work


def _of_cpu_ranks(path: str, tags: Sequence[str]) -> list[Work]:
    """The work in a file of several CPU ranks, each with its own steps."""
    works = []
    for process, tag in enumerate(tags, start=1):
        work = _on_cpu(path, _read_here(path, want_host=True, tag=tag))
        if work is not None:
            work.rank, work.process = rank_in(tag), process
            works.append(work)
    return works


def _uses_gloo(reading: Reading) -> bool:
    info = reading.metadata.get("distributedInfo")
    return isinstance(info, dict) and info.get("backend") == "gloo"


def _with_gloo(path: str, reading: Reading, works: list[Work]) -> list[Work]:
    """The work, with gloo's ranges added where the device shows no communication."""
    if len(works) != 1 or (works[0].kind == COMMUNICATION).any():
        return works
    read = reading if reading.host.names else _read_here(path, want_host=True)
    work, ranges = with_gloo(works[0], read.host)
    marks = finish_marks(read.marks, list(read.names), read.threads)
    work.calls = list(read.calls)
    add_gloo_origins(work, ranges, read.host, marks, read.threads)
    return [work]


def groups_of(metadata: Mapping[str, Any]) -> list[Group]:
    """The process groups in `distributedInfo`."""
    info = metadata.get("distributedInfo")
    listed = info.get("pg_config") if isinstance(info, dict) else None
    groups = []
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict):
            continue
        ranks = ranks_of(entry.get("ranks"))
        size = integer(entry.get("pg_size")) or integer(entry.get("group_size")) or len(ranks)
        groups.append(
            Group(str(entry.get("pg_name", "")), str(entry.get("pg_desc", "")), size, ranks)
        )
    return groups


def works_of(path: str, reading: Reading, stated: Stated = NOTHING_STATED) -> list[Work]:
    """The device work that was read, one `Work` for each device.

    Raises:
        InputError: no event has a usable time.
    """
    recording = Recording(
        path, "kineto", list(reading.names), list(reading.calls), reading.problems, stated
    )
    launches = _launches(reading)
    marks = finish_marks(reading.marks, recording.names, reading.threads)
    works = []
    for device, columns in sorted(reading.devices.items()):
        work = finish_columns(columns, device, recording)
        if work is None:
            continue
        work.launches = launches
        # A profile is of one process.
        work.process = 0
        marked = reading.device_steps.get(device)
        if marked is None and not reading.device_steps.keys() & reading.devices.keys():
            # The ranges do not state their device.
            marked = next(iter(reading.device_steps.values()), None)
        work.steps, notes = project(work, marked, reading.host_steps, launches)
        work.warnings += notes
        work.host_steps = reading.host_steps.windows()
        work.iterations = iterations_on(work, reading.engine_ranges, launches)
        work.frameworks = reading.marks.frameworks
        add_origins(work, marks)
        works.append(work)
    if not works:
        raise InputError(f"{path}: none of its device events has a usable time and duration")
    lost = reading.lost.warning(works)
    for work in works:
        _describe(work, reading)
        work.warnings += [lost] if lost is not None else []
    return works


def _launches(reading: Reading) -> Launches | None:
    if not reading.launch_correlation:
        return None
    correlation = whole_numbers(reading.launch_correlation)
    time, usable = column_ns(reading.launch_time)
    usable &= correlation > 0
    thread = np.asarray(reading.launch_thread, dtype=np.int32)[usable]
    return sorted_launches(correlation[usable], time[usable], thread)


def _describe(work: Work, reading: Reading) -> None:
    metadata = reading.metadata
    info = metadata.get("distributedInfo")
    if isinstance(info, dict):
        work.rank = integer(info.get("rank"))
        work.world_size = integer(info.get("world_size"))
    work.groups = groups_of(metadata)
    properties = metadata.get("deviceProperties")
    for entry in properties if isinstance(properties, list) else []:
        if isinstance(entry, dict) and (
            integer(entry.get("id")) == work.device or work.gpu is None
        ):
            work.gpu = str(entry.get("name") or "") or work.gpu
    work.truncated = reading.cut
    if work.truncated:
        work.warnings.insert(0, "the file is truncated: it ends in the middle of its events")
    work.warnings += [f"{count} x {what}" for what, count in reading.problems.items()]
