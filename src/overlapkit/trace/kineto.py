"""Reads Kineto's JSON, as torch.profiler writes it, into columns of device work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np

from overlapkit.errors import InputError
from overlapkit.trace.byte_source import ByteSource
from overlapkit.trace.columns import HostRanges, WorkColumns
from overlapkit.trace.events import Call, Group, Launches, Work, sorted_launches
from overlapkit.trace.json_events import EventReader
from overlapkit.trace.steps import StepRanges, project
from overlapkit.trace.times import EXACT_DOUBLE_US, column_ns, integer, usable_ns, whole_numbers

_Number = int | float | str | None
_Id = int | str | float | None


class Event(msgspec.Struct, gc=False):
    """What is read of every event; the arguments only of those that matter."""

    ph: str | None = None
    cat: str | None = None
    name: str | None = None
    pid: _Id = None
    tid: _Id = None
    ts: _Number = None
    dur: _Number = None
    args: msgspec.Raw = msgspec.Raw(b"")


class ExactEvent(Event, gc=False):
    """The same for traces whose times a double cannot hold: their digits are kept."""

    ts: msgspec.Raw = msgspec.Raw(b"")  # type: ignore[assignment]
    dur: msgspec.Raw = msgspec.Raw(b"")  # type: ignore[assignment]


class Arguments(
    msgspec.Struct,
    gc=False,
    rename={
        "collective": "Collective name",
        "elements_in": "In msg nelems",
        "elements_out": "Out msg nelems",
        "group_size": "Group size",
        "group": "Process Group Name",
        "description": "Process Group Description",
        "ranks": "Process Group Ranks",
    },
):
    """The arguments of device work and of launches that are used."""

    device: _Id = None
    stream: _Id = None
    correlation: _Id = None
    grid: msgspec.Raw = msgspec.Raw(b"")
    block: msgspec.Raw = msgspec.Raw(b"")
    collective: str | None = None
    elements_in: _Id = None
    elements_out: _Id = None
    dtype: str | None = None
    group_size: _Id = None
    group: str | int | None = None
    description: str | None = None
    ranks: Any = None


class LaunchArguments(msgspec.Struct, gc=False):
    """The one argument of a launch that is used."""

    correlation: _Id = None


_LARGEST_DEVICE = 1 << 31
_LAUNCH_ARGUMENTS = msgspec.json.Decoder(LaunchArguments)
_ARGUMENTS = msgspec.json.Decoder(Arguments)
_NO_ARGUMENTS = Arguments()

# Traces of 2022 and before write the categories that follow the comma.
_DEVICE = {
    "kernel": False,
    "Kernel": False,
    "gpu_memcpy": True,
    "gpu_memset": True,
    "Memcpy": True,
    "Memset": True,
}
"""Categories of device work, and whether they are copies."""

_LAUNCH = frozenset({"cuda_runtime", "cuda_driver", "Runtime"})
_RANGE = frozenset({"user_annotation", "gpu_user_annotation"})
_WANTED = frozenset(_DEVICE) | _LAUNCH | _RANGE
_CPU = frozenset({"cpu_op", "user_annotation", "Operator", "operator"})


def lenient_event(plain: Mapping[str, Any]) -> Event:
    """An event from values of any type; what cannot be used becomes None."""

    def text(key: str) -> str | None:
        value = plain.get(key)
        return value if isinstance(value, str) else None if value is None else str(value)

    def number(key: str) -> int | float | str | None:
        value = plain.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return None
        return value

    def identity(key: str) -> int | str | float | None:
        value = plain.get(key)
        return value if isinstance(value, (int, str, float)) else None

    arguments = plain.get("args")
    try:
        raw = msgspec.json.encode(arguments) if isinstance(arguments, dict) else b""
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        raw = b""
    return Event(
        text("ph"),
        text("cat"),
        text("name"),
        identity("pid"),
        identity("tid"),
        number("ts"),
        number("dur"),
        msgspec.Raw(raw),
    )


class Numbers(dict[Any, int]):
    """Numbers things in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


@dataclass
class _Reading:
    """What accumulates while a file is read."""

    devices: dict[int, WorkColumns] = field(default_factory=dict)
    names: Numbers = field(default_factory=Numbers)
    grids: Numbers = field(default_factory=Numbers)
    calls: dict[Call, int] = field(default_factory=dict)
    call_numbers: dict[Any, int] = field(default_factory=dict)
    launch_correlation: list[Any] = field(default_factory=list)
    launch_time: list[Any] = field(default_factory=list)
    launch_thread: list[int] = field(default_factory=list)
    threads: Numbers = field(default_factory=Numbers)
    device_steps: dict[int, StepRanges] = field(default_factory=lambda: defaultdict(StepRanges))
    host_steps: StepRanges = field(default_factory=StepRanges)
    host: HostRanges = field(default_factory=HostRanges)
    troubles: Counter[str] = field(default_factory=Counter)


def read_kineto(path: str) -> list[Work]:
    """The device work in a file, one `Work` per device that has any.

    A file without device work is read as a CPU trace: gloo's ranges are its communication, the
    outermost operators its compute.

    Raises:
        InputError: it is no trace, too damaged, or holds neither device work nor operators.
    """
    exact = False
    for want_host in (False, True):
        try:
            reading, reader = _read(path, want_host, exact)
        except _DigitsNeeded:
            exact = True
            reading, reader = _read(path, want_host, exact)
        if reading.devices:
            return _finish(path, reading, reader)
        if reading.host.names:
            from overlapkit.trace.cpu import cpu_work

            work = cpu_work(path, reading.host, reading.host_steps, groups_of(reader.metadata))
            if work is not None:
                _describe(work, reader, reading)
                return [work]
    raise InputError(
        f"{path}: holds no device work and no operators; record with ProfilerActivity.CUDA"
    )


class _DigitsNeeded(Exception):
    """Times have digits that a double rounds: the file must be read with their text kept."""


def _read(path: str, want_host: bool, exact: bool) -> tuple[_Reading, EventReader[Event]]:
    reading = _Reading()
    kind = ExactEvent if exact else Event
    reader: EventReader[Event] = EventReader(ByteSource(path), kind, lenient_event)
    first = True
    for events in reader.chunks():
        if first:
            # With no devices in its head a file is surely a CPU trace: one pass is enough.
            want_host = want_host or reader.metadata.get("deviceProperties") == []
            first = False
        wanted = _WANTED | _CPU if want_host else _WANTED
        chosen = [event for event in events if event.cat in wanted]
        if not exact and _needs_digits(chosen):
            raise _DigitsNeeded
        _take(chosen, reading, want_host)
    reading.troubles.update(reader.troubles)
    return reading, reader


def _needs_digits(events: list[Event]) -> bool:
    """Whether times of these events have digits that a double rounds."""
    for event in events[:200]:
        ts = event.ts
        # An integer stays one: a double was written with a fraction.
        if isinstance(ts, float) and ts >= EXACT_DOUBLE_US:
            return True
    return False


def _take(events: list[Event], reading: _Reading, want_host: bool) -> None:
    device = [e for e in events if e.cat in _DEVICE and e.ph == "X"]
    _take_device(device, reading)
    launches = [e for e in events if e.cat in _LAUNCH and e.ph == "X"]
    _take_launches(launches, reading)
    if len(device) + len(launches) < len(events):
        _take_ranges(events, reading, want_host)


def _take_ranges(events: list[Event], reading: _Reading, want_host: bool) -> None:
    for event in events:
        category = event.cat or ""
        if category not in (_RANGE | _CPU) or event.ph != "X":
            continue
        name = event.name or ""
        is_step = name.startswith("ProfilerStep")
        if not (is_step or want_host):
            continue
        span = usable_ns(event.ts, event.dur)
        if span is None:
            if is_step:
                reading.troubles["step range without a usable time, left out"] += 1
        elif is_step and category == "gpu_user_annotation":
            reading.device_steps[_device(_arguments(event), event)].add(name, *span)
        elif is_step:
            reading.host_steps.add(name, *span)
            reading.host.step_threads.add((event.pid, event.tid))
        elif category != "gpu_user_annotation":
            reading.host.add(name, category, (event.pid, event.tid), *span)


def _take_launches(events: list[Event], reading: _Reading) -> None:
    decode = _LAUNCH_ARGUMENTS.decode
    try:
        ids = [decode(event.args).correlation for event in events]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        ids = [_arguments(event).correlation for event in events]
    threads = reading.threads
    reading.launch_correlation += ids
    reading.launch_time += [event.ts for event in events]
    reading.launch_thread += [threads[event.tid] for event in events]


def _take_device(events: list[Event], reading: _Reading) -> None:
    # Columns are filled one after the other: a loop over events takes twice as long.
    decode = _ARGUMENTS.decode
    try:
        arguments = [decode(event.args) for event in events]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        arguments = [_arguments(event) for event in events]
    told = {a.device for a in arguments}
    if len(told) == 1 and type(device := told.pop()) is int and 0 <= device < _LARGEST_DEVICE:
        _add_device(device, events, arguments, reading)
        return
    apart: dict[int, tuple[list[Event], list[Arguments]]] = {}
    for event, own in zip(events, arguments, strict=True):
        rows = apart.setdefault(_device(own, event), ([], []))
        rows[0].append(event)
        rows[1].append(own)
    for device, (mine, own_arguments) in apart.items():
        _add_device(device, mine, own_arguments, reading)


def _add_device(
    device: int, events: list[Event], arguments: list[Arguments], reading: _Reading
) -> None:
    columns = reading.devices.setdefault(device, WorkColumns())
    names, grids = reading.names, reading.grids
    columns.ts += [event.ts for event in events]
    columns.dur += [event.dur for event in events]
    columns.name += [names[e.name or ""] * 2 + _DEVICE[e.cat or ""] for e in events]
    columns.correlation += [a.correlation for a in arguments]
    columns.grid += [grids[bytes(a.grid), bytes(a.block)] for a in arguments]
    columns.call += [
        -1 if a.collective is None and a.group is None and not a.description else _call(a, reading)
        for a in arguments
    ]
    streams = [a.stream for a in arguments]
    if None in streams:
        pairs = zip(streams, events, strict=True)
        streams = [event.tid if stream is None else stream for stream, event in pairs]
    columns.stream += streams


def _arguments(event: Event) -> Arguments:
    raw = event.args
    if not raw:
        return _NO_ARGUMENTS
    try:
        return _ARGUMENTS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # A value of an unexpected type: take what has the expected one.
    try:
        plain = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_ARGUMENTS
    if not isinstance(plain, dict):
        return _NO_ARGUMENTS
    result = Arguments()
    for name, key in zip(
        Arguments.__struct_fields__, Arguments.__struct_encode_fields__, strict=True
    ):
        value = plain.get(key)
        if name in ("collective", "dtype", "description"):
            value = value if isinstance(value, str) else None
        elif name in ("grid", "block"):
            value = msgspec.Raw(msgspec.json.encode(value)) if value else msgspec.Raw(b"")
        elif name != "ranks" and not isinstance(value, (int, str, float)):
            value = None
        setattr(result, name, value)
    return result


def _device(arguments: Arguments, event: Event) -> int:
    """The device's number, from the arguments or, in old traces, the process id's place."""
    for value in (arguments.device, event.pid):
        number = integer(value)
        if number is not None and 0 <= number < _LARGEST_DEVICE:
            return number
    return 0


def _call(arguments: Arguments, reading: _Reading) -> int:
    """The number of a collective's recorded facts; equal ones share it."""
    ranks = arguments.ranks
    key = (
        arguments.collective,
        arguments.elements_in,
        arguments.elements_out,
        arguments.dtype,
        arguments.group_size,
        arguments.group,
        arguments.description,
        ranks if isinstance(ranks, str) else str(ranks),
    )
    known = reading.call_numbers.get(key)
    if known is None:
        call = Call(
            name=arguments.collective,
            elements_in=integer(arguments.elements_in),
            elements_out=integer(arguments.elements_out),
            dtype=arguments.dtype,
            group_size=integer(arguments.group_size),
            group=None if arguments.group is None else str(arguments.group),
            description=arguments.description or None,
            ranks=ranks_of(ranks),
        )
        known = reading.calls.setdefault(call, len(reading.calls))
        reading.call_numbers[key] = known
    return known


def ranks_of(value: Any) -> tuple[int, ...]:
    """Ranks from a list, or from its text; empty where it is cut short by "..."."""
    if isinstance(value, str):
        return _ranks_in(value)
    if not isinstance(value, (list, tuple)):
        return ()
    ranks = tuple(v for v in value if isinstance(v, int) and not isinstance(v, bool))
    return ranks if len(ranks) == len(value) else ()


@cache
def _ranks_in(text: str) -> tuple[int, ...]:
    parts = text.strip("[]() ").split(",")
    known = all(part.strip().isdecimal() and len(part) < 10 for part in parts)
    return tuple(map(int, parts)) if known else ()


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


def _finish(path: str, reading: _Reading, reader: EventReader[Event]) -> list[Work]:
    names = list(reading.names)
    calls = list(reading.calls)
    launches = _launches(reading)
    works = []
    for device, columns in sorted(reading.devices.items()):
        work = columns.finish(path, "kineto", device, names, calls, reading.troubles)
        if work is None:
            continue
        work.launches = launches
        marked = reading.device_steps.get(device)
        if marked is None and not reading.device_steps.keys() & reading.devices.keys():
            # Ranges whose device is not told.
            marked = next(iter(reading.device_steps.values()), None)
        work.steps, notes = project(work, marked, reading.host_steps, launches)
        work.warnings += notes
        works.append(work)
    if not works:
        raise InputError(f"{path}: none of its device events has a usable time and duration")
    for work in works:
        _describe(work, reader, reading)
    return works


def _launches(reading: _Reading) -> Launches | None:
    if not reading.launch_correlation:
        return None
    correlation = whole_numbers(reading.launch_correlation)
    time, usable = column_ns(reading.launch_time)
    usable &= correlation > 0
    thread = np.asarray(reading.launch_thread, dtype=np.int32)[usable]
    return sorted_launches(correlation[usable], time[usable], thread)


def _describe(work: Work, reader: EventReader[Event], reading: _Reading) -> None:
    metadata = reader.metadata
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
    if reader.cut:
        work.warnings.insert(
            0, "the file ends in the middle of its events: what follows is not in the report"
        )
    work.warnings += [f"{count} x {what}" for what, count in reading.troubles.items()]
