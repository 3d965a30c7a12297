"""Extracts what matters from the events of Kineto's JSON. Without numpy, see `recorded`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec

from overlapkit.output.printable import printable
from overlapkit.trace.read.byte_source import ByteSource
from overlapkit.trace.read.host.engines import batch_of
from overlapkit.trace.read.host.marks import Names
from overlapkit.trace.read.json.events import EventReader, NotInShares
from overlapkit.trace.read.merged import tag_of
from overlapkit.trace.read.recorded import Call, Reading, WorkColumns
from overlapkit.trace.read.timestamps import EXACT_DOUBLE_US, integer, usable_ns

_Number = int | float | str | None
_Id = int | str | float | None


class Event(msgspec.Struct, gc=False):
    """What is read of every event. The arguments are decoded only where they matter."""

    ph: str | None = None
    cat: str | None = None
    name: str | None = None
    pid: _Id = None
    tid: _Id = None
    ts: _Number = None
    dur: _Number = None
    args: msgspec.Raw = msgspec.Raw(b"")


class ExactEvent(Event, gc=False):
    """The same for traces with times that a double cannot represent: their digits are kept."""

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

# Traces from 2022 and earlier use the names that begin with a capital letter.
_DEVICE = {
    "kernel": False,
    "Kernel": False,
    "gpu_memcpy": True,
    "gpu_memset": True,
    "Memcpy": True,
    "Memset": True,
}
"""Categories of device work, and whether they are copies."""

# Kineto's categories of calls of a runtime or driver; that of ROCm is called CUDA's.
_LAUNCH = frozenset(
    {"cuda_runtime", "cuda_driver", "Runtime", "xpu_runtime", "xpu_driver", "mtia_runtime"}
    | {"privateuse1_runtime", "privateuse1_driver"}
)
_CPU = frozenset({"cpu_op", "user_annotation", "Operator", "operator"})
_ON_DEVICE = "gpu_user_annotation"
"""Ranges that are drawn on a stream, around the kernels that were launched in one on the host."""

# PyTorch 1.8 records ProfilerStep#N in the category of operators, which it calls "Operator".
_RANGE = frozenset({"user_annotation", "Operator", _ON_DEVICE})
_WANTED = frozenset(_DEVICE) | _LAUNCH | _RANGE
_MARKS = _CPU | {"python_function", _ON_DEVICE}
_DESCRIBED = "record_param_comms"
"""The operator whose arguments describe the collective, also where the kernel's do not."""


def lenient_event(plain: Mapping[str, Any]) -> Event:
    """An event from values of any type; a value of an unexpected type becomes None."""

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


class DigitsNeeded(Exception):
    """Times have digits that a double rounds: the file must be read with their text."""


def read_events(
    path: str,
    *,
    want_host: bool = False,
    exact: bool = False,
    share: tuple[int, int] = (0, 1),
    tag: str | None = None,
    also: Callable[[list[Event], Reading], None] | None = None,
) -> Reading:
    """What matters in a file.

    Args:
        path: the file.
        want_host: whether operators and annotations matter, as in a CPU trace.
        exact: whether to keep the digits of times.
        share: (i, n) to decode only every n-th chunk, from the i-th. The readings of all shares
            together are the reading of the file.
        tag: the rank to read of a file of several; see `merged`.
        also: takes what else matters of the events of each chunk.

    Raises:
        InputError: it is not a trace, or too damaged.
        DigitsNeeded: the digits of times matter, and `exact` is off.
        NotInShares: the file cannot be read in shares.
    """
    reading = Reading()
    kind = ExactEvent if exact else Event
    reader: EventReader[Event] = EventReader(ByteSource(path), kind, lenient_event, share)
    names = Names()
    reading.marks.frameworks = names.frameworks
    first = True
    for events in reader.chunks():
        if first and not want_host and reader.metadata.get("deviceProperties") == []:
            # No devices are listed in its head: it is a CPU trace, and one pass is enough.
            if share[1] > 1:
                raise NotInShares
            want_host = True
        first = False
        if tag is not None:
            events = [event for event in events if tag_of(event.pid) == tag]
        wanted = _WANTED | _CPU if want_host else _WANTED
        chosen = [event for event in events if event.cat in wanted]
        if not exact and _needs_digits(chosen):
            raise DigitsNeeded
        _take(chosen, reading, want_host)
        _take_marks([e for e in events if e.cat in _MARKS and names[e.name]], reading)
        if also is not None:
            also(events, reading)
    reading.problems.update(reader.problems)
    reading.lost = reader.lost
    reading.metadata, reading.cut = reader.metadata, reader.cut
    return reading


def _needs_digits(events: list[Event]) -> bool:
    """Whether times of these events have digits that a double rounds."""
    for event in events[:200]:
        ts = event.ts
        # Only numbers with a fraction are decoded to doubles.
        if isinstance(ts, float) and ts >= EXACT_DOUBLE_US:
            return True
    return False


def _take(events: list[Event], reading: Reading, want_host: bool) -> None:
    device = [e for e in events if e.cat in _DEVICE and e.ph == "X"]
    _take_device(device, reading)
    launches = [e for e in events if e.cat in _LAUNCH and e.ph == "X"]
    _take_launches(launches, reading)
    if len(device) + len(launches) < len(events):
        _take_ranges(events, reading, want_host)


def _take_ranges(events: list[Event], reading: Reading, want_host: bool) -> None:
    for event in events:
        category = event.cat or ""
        if category not in (_RANGE | _CPU) or event.ph != "X":
            continue
        name = event.name or ""
        on_device = category == _ON_DEVICE
        is_step = name.startswith("ProfilerStep")
        of_engine = not on_device and batch_of(name) is not None
        if not (is_step or want_host or of_engine):
            continue
        span = usable_ns(event.ts, event.dur)
        if span is None:
            if is_step:
                reading.problems["step range without a usable time, omitted"] += 1
        elif is_step and on_device:
            reading.device_steps[_device(_arguments(event), event)].add(name, *span)
        elif is_step:
            reading.host_steps.add(name, *span)
            reading.host.step_threads.add((event.pid, event.tid))
        elif not on_device:
            if of_engine:
                reading.engine_ranges.append((printable(name), *span))
            if want_host:
                reading.host.add(name, category, (event.pid, event.tid), span)


def _take_marks(events: list[Event], reading: Reading) -> None:
    marks, names, threads = reading.marks, reading.names, reading.threads
    events = [event for event in events if event.ph == "X"]
    marks.name += [names[event.name or ""] for event in events]
    marks.thread += [threads[_place(event)] for event in events]
    marks.ts += _unbound([event.ts for event in events])
    marks.dur += _unbound([event.dur for event in events])
    marks.call += [
        _described(event, reading) if event.name == _DESCRIBED else -1 for event in events
    ]


def _place(event: Event) -> Any:
    """The thread of a range; for one on the device, its device and stream."""
    if event.cat != _ON_DEVICE:
        return event.tid
    arguments = _arguments(event)
    stream = integer(event.tid if arguments.stream is None else arguments.stream)
    return _device(arguments, event), -1 if stream is None else stream


def _described(event: Event, reading: Reading) -> int:
    """The number of what an operator says of its collective; -1 where it says nothing."""
    arguments = _arguments(event)
    return -1 if _says_nothing(arguments) else _call(arguments, reading)


def _says_nothing(arguments: Arguments) -> bool:
    return arguments.collective is None and arguments.group is None and not arguments.description


def _take_launches(events: list[Event], reading: Reading) -> None:
    decode = _LAUNCH_ARGUMENTS.decode
    try:
        ids = [decode(event.args).correlation for event in events]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        ids = [_arguments(event).correlation for event in events]
    threads = reading.threads
    reading.launch_correlation += ids
    reading.launch_time += _unbound([event.ts for event in events])
    reading.launch_processes.update({event.pid for event in events})
    reading.launch_thread += [threads[event.tid] for event in events]


def _take_device(events: list[Event], reading: Reading) -> None:
    # Columns are filled one after the other, since a loop over events takes twice as long.
    decode = _ARGUMENTS.decode
    try:
        arguments = [decode(event.args) for event in events]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        arguments = [_arguments(event) for event in events]
    devices = {a.device for a in arguments}
    if len(devices) == 1 and type(device := devices.pop()) is int and 0 <= device < _LARGEST_DEVICE:
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
    device: int, events: list[Event], arguments: list[Arguments], reading: Reading
) -> None:
    columns = reading.devices.setdefault(device, WorkColumns())
    reading.device_processes.update({event.pid for event in events})
    names, grids = reading.names, reading.grids
    columns.ts += _unbound([event.ts for event in events])
    columns.dur += _unbound([event.dur for event in events])
    columns.name += [names[e.name or ""] * 2 + _DEVICE[e.cat or ""] for e in events]
    columns.correlation += [a.correlation for a in arguments]
    columns.grid += [grids[bytes(a.grid), bytes(a.block)] for a in arguments]
    columns.call += [-1 if _says_nothing(a) else _call(a, reading) for a in arguments]
    streams = [a.stream for a in arguments]
    if None in streams:
        pairs = zip(streams, events, strict=True)
        streams = [event.tid if stream is None else stream for stream, event in pairs]
    columns.stream += streams


def _unbound(values: list[Any]) -> list[Any]:
    """The values without `msgspec.Raw`, each of which would keep its whole chunk in memory."""
    if values and type(values[0]) is msgspec.Raw:
        return [str(bytes(v), "ascii", "replace") if type(v) is msgspec.Raw else v for v in values]
    return values


def _arguments(event: Event) -> Arguments:
    raw = event.args
    if not raw:
        return _NO_ARGUMENTS
    try:
        return _ARGUMENTS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # A value has an unexpected type: use the others.
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
    """The number of the device, from the arguments; in old traces, from the process id."""
    for value in (arguments.device, event.pid):
        number = integer(value)
        if number is not None and 0 <= number < _LARGEST_DEVICE:
            return number
    return 0


def _call(arguments: Arguments, reading: Reading) -> int:
    """The number of what was recorded about a collective; equal facts share it."""
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
    """Ranks from a list, or from its text; empty where it is abbreviated by "..."."""
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
