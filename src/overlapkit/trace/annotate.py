"""Writes a copy of a trace with added tracks: exposed communication by dimension, and idle time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from overlapkit.errors import InputError
from overlapkit.output.files import Output
from overlapkit.trace.intervals import Spans, minus
from overlapkit.trace.measure.step_times import WorkSpans, span_of
from overlapkit.trace.read.byte_source import ByteSource
from overlapkit.trace.read.json.events import split_head

_FIRST_PROCESS = 2_000_000_000
"""Process id of the first added track, above any that Linux assigns (up to 4,194,304)."""

_CATEGORY = "overlapkit"
"""Not a category of device work, so that an annotated trace yields the same measurements."""


def write_annotated(path: str, measured: Sequence[WorkSpans], target: Output) -> None:
    """Write the events of a trace and the added tracks.

    Args:
        path: the trace.
        measured: the work of each of its devices.
        target: the file to write, compressed where its name ends in ``.gz``.

    Raises:
        InputError: the trace is not JSON, or the target cannot be written.
    """
    if any(m.work.source == "nsys" for m in measured):
        raise InputError(f"--annotate: {path} is SQLite; only JSON traces can be annotated")
    blocks = iter(ByteSource(path))
    head, rest = split_head(path, blocks)
    with target.stream() as stream:
        stream.write(head)
        first = True
        for text in _tracks(measured):
            stream.write((b"\n" if first else b",\n") + text)
            first = False
        if rest.lstrip()[:1] not in (b"]", b""):
            stream.write(b",")
        stream.write(rest)
        for block in blocks:
            stream.write(block)


def _tracks(measured: Sequence[WorkSpans]) -> Iterator[bytes]:
    for index, m in enumerate(measured):
        process = _FIRST_PROCESS + index
        where = "CPU" if m.work.device < 0 else f"device {m.work.device}"
        yield _metadata("process_name", process, 0, name=f"overlapkit: {where}")
        yield _metadata("process_sort_index", process, 0, sort_index=-1)
        tracks = [
            (f"exposed {dimension}", spans) for dimension, spans in m.dimension_exposed.items()
        ]
        tracks.append(("exposed communication", m.exposed))
        tracks.append(("idle", _idle(m)))
        for thread, (name, spans) in enumerate(tracks, start=1):
            yield _metadata("thread_name", process, thread, name=name)
            yield _metadata("thread_sort_index", process, thread, sort_index=thread)
            for start, end in zip(spans.start.tolist(), spans.end.tolist(), strict=True):
                yield (
                    f'{{"ph":"X","cat":"{_CATEGORY}","name":{json.dumps(name)},"pid":{process},'
                    f'"tid":{thread},"ts":{_digits(start)},"dur":{_digits(end - start)}}}'
                ).encode()


def _idle(m: WorkSpans) -> Spans:
    steps = m.work.steps or [m.work.whole]
    return minus(span_of(steps), m.busy)


def _metadata(kind: str, process: int, thread: int, **args: str | int) -> bytes:
    event = {"ph": "M", "name": kind, "pid": process, "tid": thread, "ts": 0, "args": args}
    return json.dumps(event).encode()


def _digits(ns: int) -> str:
    """Microseconds with all digits of the nanoseconds."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    return f"{sign}{ns // 1000}.{ns % 1000:03d}"
