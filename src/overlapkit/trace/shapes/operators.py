"""Reads the operators whose input shapes a profile recorded, with the work that they launched.

torch.profiler records shapes with ``record_shapes=True``: "Input Dims", "Input type" and "Concrete
Inputs" of each operator, and of each autograd function of Python those of its tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.intervals import Spans, union
from overlapkit.trace.read.device_work import COMMUNICATION, COMPUTE, Work
from overlapkit.trace.read.host.launched import Marks, origins
from overlapkit.trace.read.kernel_names import operation
from overlapkit.trace.read.kineto import groups_of, works_of
from overlapkit.trace.read.kineto_events import DigitsNeeded, Event, read_events
from overlapkit.trace.read.merged import tags_of
from overlapkit.trace.read.recorded import Call, Group, Reading
from overlapkit.trace.read.timestamp_columns import column_ns
from overlapkit.trace.read.timestamps import integer

_HOST = frozenset({"cpu_op", "user_annotation", "Operator", "operator"})
_SHAPES = b'"Input Dims"'
GLOO = "gloo:"


class _Arguments(
    msgspec.Struct,
    gc=False,
    rename={
        "dims": "Input Dims",
        "strides": "Input Strides",
        "types": "Input type",
        "concrete": "Concrete Inputs",
        "sequence": "Sequence number",
    },
):
    dims: Any = None
    strides: Any = None
    types: Any = None
    concrete: Any = None
    sequence: Any = None


_DECODER = msgspec.json.Decoder(_Arguments)


@dataclass(frozen=True)
class Inputs:
    """What was recorded of an operator's inputs.

    Attributes:
        dims: sizes of each tensor; empty for other inputs and for scalars.
        strides: of each tensor, in elements; empty where not recorded.
        types: such as "c10::BFloat16"; "" for what is no tensor.
        concrete: the text of each input that is no tensor; "" for tensors.
    """

    dims: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]
    concrete: tuple[str, ...]

    def flag(self, place: int) -> bool | None:
        """A boolean input; None where it was not recorded."""
        text = self.concrete[place] if place < len(self.concrete) else ""
        return {"True": True, "False": False}.get(text)


@dataclass(frozen=True)
class Operator:
    """One call of an operator, and what it launched.

    Attributes:
        name: such as "aten::mm".
        inputs: their shapes.
        sequence: equal for an autograd function and its backward; None where not recorded.
        thread: the number of its thread.
        start, end: on the host, in nanoseconds.
        kernels: its compute on the device, in order: name and nanoseconds. Work of operators inside
            it that were asked for too is theirs.
        gathers: ranks of each group that it gathered from.
        beside: whether communication ran at the same time as its compute.
    """

    name: str
    inputs: Inputs
    sequence: int | None
    thread: int
    start: int
    end: int
    kernels: tuple[tuple[str, int], ...] = ()
    gathers: tuple[int, ...] = ()
    beside: bool = False


@dataclass(frozen=True)
class Message:
    """One collective, as the device (or gloo) ran it.

    Attributes:
        name: of the kernel or of gloo's range.
        call: what was recorded about it.
        ns: how long it took.
    """

    name: str
    call: Call
    ns: int


@dataclass
class Profile:
    """The operators and collectives of one rank.

    Attributes:
        gpu: the name of the device; None for a CPU.
        on_device: whether there is device work; else an operator's time is that on the host.
        operators: those that were asked for.
        messages: the collectives that say what they sent.
        groups: the process groups that the file lists.
        world_size: ranks of the job; None where not recorded.
        has_shapes: whether any operator has shapes.
        unread: what could not be read, with how often.
    """

    gpu: str | None
    on_device: bool
    operators: list[Operator]
    messages: list[Message]
    groups: list[Group]
    world_size: int | None
    has_shapes: bool
    unread: dict[str, int] = field(default_factory=dict)


@dataclass
class _Columns:
    """Ranges on the host as they were read."""

    wanted: Collection[str]
    name: list[str] = field(default_factory=list)
    thread: list[int] = field(default_factory=list)
    ts: list[Any] = field(default_factory=list)
    dur: list[Any] = field(default_factory=list)
    inputs: list[Inputs] = field(default_factory=list)
    sequence: list[int | None] = field(default_factory=list)
    has_shapes: bool = False
    known: dict[Inputs, Inputs] = field(default_factory=dict)

    def take(self, events: list[Event], reading: Reading) -> None:
        """Take the operators that are wanted, and gloo's ranges."""
        for event in events:
            if event.cat not in _HOST or event.ph != "X" or _SHAPES not in bytes(event.args):
                continue
            self.has_shapes = True
            name = event.name or ""
            if name in self.wanted or name.startswith(GLOO):
                self._add(name, event, reading)

    def _add(self, name: str, event: Event, reading: Reading) -> None:
        try:
            told = _DECODER.decode(event.args)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        inputs = Inputs(
            _dims(told.dims), _dims(told.strides), _texts(told.types), _texts(told.concrete)
        )
        self.inputs.append(self.known.setdefault(inputs, inputs))
        self.name.append(name)
        self.thread.append(reading.threads[event.tid])
        self.ts.append(_unbound(event.ts))
        self.dur.append(_unbound(event.dur))
        self.sequence.append(integer(told.sequence))


def _unbound(value: Any) -> Any:
    """A time without `msgspec.Raw`, which would keep its whole chunk in memory."""
    return str(bytes(value), "ascii", "replace") if type(value) is msgspec.Raw else value


def _dims(value: Any) -> tuple[tuple[int, ...], ...]:
    """Sizes of tensors. Those of a list of tensors are a list of lists: they are left out."""
    found = []
    for each in value if isinstance(value, list) else []:
        whole = isinstance(each, list) and all(
            isinstance(size, int) and not isinstance(size, bool) for size in each
        )
        found.append(tuple(each) if whole else ())
    return tuple(found)


def _texts(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else []
    return tuple(each if isinstance(each, str) else "" for each in listed)


def read_profiles(path: str, wanted: Collection[str]) -> list[Profile]:
    """The operators and collectives in a trace of torch.profiler, for each of its ranks.

    Args:
        path: the file.
        wanted: names of the operators.

    Raises:
        InputError: it is not such a trace, or too damaged.
    """
    reading, columns = _read(path, wanted, None)
    tags = tags_of(path, reading)
    if not tags:
        return [_profile(path, reading, columns)]
    return [_profile(path, *_read(path, wanted, tag)) for tag in tags]


def _read(path: str, wanted: Collection[str], tag: str | None) -> tuple[Reading, _Columns]:
    columns = _Columns(wanted)
    try:
        return read_events(path, tag=tag, also=columns.take), columns
    except DigitsNeeded:
        columns = _Columns(wanted)
        return read_events(path, exact=True, tag=tag, also=columns.take), columns


def _profile(path: str, reading: Reading, columns: _Columns) -> Profile:
    works = works_of(path, reading) if reading.devices else []
    start, has_start = column_ns(columns.ts)
    length, has_length = column_ns(columns.dur)
    usable = has_start & has_length & (length >= 0)
    operators = [
        Operator(
            columns.name[n],
            columns.inputs[n],
            columns.sequence[n],
            columns.thread[n],
            int(start[n]),
            int(start[n] + length[n]),
        )
        for n in np.flatnonzero(usable).tolist()
    ]
    groups = groups_of(reading.metadata)
    info = reading.metadata.get("distributedInfo")
    profile = Profile(
        gpu=next((work.gpu for work in works if work.gpu), None),
        on_device=bool(works),
        operators=[one for one in operators if not one.name.startswith(GLOO)],
        messages=[],
        groups=groups,
        world_size=integer(info.get("world_size")) if isinstance(info, dict) else None,
        has_shapes=columns.has_shapes,
    )
    if not works:
        ranges = [one for one in operators if one.name.startswith(GLOO)]
        profile.messages = list(_gloo_messages(ranges, profile))
        return profile
    profile.operators = _with_kernels(profile, works)
    profile.messages = [one for work in works for one in _messages(work)]
    return profile


def _with_kernels(profile: Profile, works: list[Work]) -> list[Operator]:
    """The operators with the work that each of them launched."""
    marks = _marks(profile.operators)
    kernels: dict[int, list[tuple[str, int]]] = {}
    gathers: dict[int, list[int]] = {}
    beside: set[int] = set()
    for work in works:
        chosen = np.flatnonzero((work.kind == COMPUTE) | (work.kind == COMMUNICATION))
        found = origins(work, marks, chosen).call
        comm = work.kind == COMMUNICATION
        during = union(work.start[comm], work.end[comm])
        for event in np.flatnonzero(found >= 0).tolist():
            mine = int(found[event])
            if work.kind[event] == COMPUTE:
                length = int(work.end[event] - work.start[event])
                kernels.setdefault(mine, []).append((work.names[work.name[event]], length))
                if _overlaps(during, work, event):
                    beside.add(mine)
            elif (size := _gathered(work, event)) is not None:
                gathers.setdefault(mine, []).append(size)
        lost = int((work.kind == COMPUTE).sum() - (found[work.kind == COMPUTE] >= 0).sum())
        _count(profile, "kernels of operators that say nothing of a measured kind", lost)
    return [
        Operator(
            one.name, one.inputs, one.sequence, one.thread, one.start, one.end,
            tuple(kernels.get(n, ())), tuple(gathers.get(n, ())), n in beside,
        )
        for n, one in enumerate(profile.operators)
    ]  # fmt: skip


def _marks(operators: list[Operator]) -> Marks:
    """The operators as ranges, whose call is their own number."""
    names = sorted({one.name for one in operators})
    number = {name: place for place, name in enumerate(names)}

    def column(values: list[int], kind: Any) -> NDArray[Any]:
        return np.asarray(values, dtype=kind)

    return Marks(
        column([number[one.name] for one in operators], np.int32),
        column([one.thread for one in operators], np.int32),
        column([one.start for one in operators], np.int64),
        column([one.end for one in operators], np.int64),
        column(list(range(len(operators))), np.int32),
        names,
        {},
    )


def _overlaps(during: Spans, work: Work, event: int) -> bool:
    return bool(during.within(work.start[event : event + 1], work.end[event : event + 1])[0])


def _gathered(work: Work, event: int) -> int | None:
    """Ranks that a collective gathers from; None for another kind."""
    call = work.calls[work.call[event]] if work.call[event] >= 0 else None
    name = (call.name if call is not None else "") or work.names[work.name[event]]
    if call is None or "gather" not in name.lower():
        return None
    size: int | None = call.group_size
    return size


def _messages(work: Work) -> Iterator[Message]:
    for event in np.flatnonzero((work.kind == COMMUNICATION) & (work.call >= 0)).tolist():
        call = work.calls[work.call[event]]
        yield Message(work.names[work.name[event]], call, int(work.end[event] - work.start[event]))


def _gloo_messages(ranges: list[Operator], profile: Profile) -> Iterator[Message]:
    """Gloo's ranges with the shapes of their tensors. They do not name their group."""
    sizes = {group.size for group in profile.groups} or {profile.world_size or 0}
    for one in ranges:
        if len(sizes) != 1:
            _count(profile, "gloo's collectives in a job of several groups", 1)
            continue
        (size,) = sizes
        elements = [int(np.prod(dims)) for dims in one.inputs.dims if dims]
        kinds = [kind for kind in one.inputs.types if kind]
        # Of an all-gather the range has what a rank gives.
        parts = size if operation(one.name) == "all_gather" else 1
        call = Call(
            name=one.name.removeprefix(GLOO),
            elements_in=sum(elements) * parts if elements else None,
            dtype=kinds[0] if kinds else None,
            group_size=size,
            ranks=tuple(range(size)),
        )
        yield Message(one.name, call, one.end - one.start)


def _count(profile: Profile, what: str, number: int) -> None:
    if number:
        profile.unread[what] = profile.unread.get(what, 0) + number
