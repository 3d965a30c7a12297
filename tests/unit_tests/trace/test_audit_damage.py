"""What is said of damaged profiles is said of profiles with that damage, and of no whole one.

A sentence of the source that no row speaks of fails the last test.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import tiny_trace as tiny
from support.field import nsight
from support.field.machine import TORCH_2_6, Machine
from support.sentences import unknown
from support.trace_answers import trace_of

DAY_US = 24 * 3600 * 10**6


def _events() -> list[dict[str, Any]]:
    kernels = [
        tiny.kernel(f"gemm_{n}", 1000 + 100 * n, 60, correlation=n + 1, note="LABEL")
        for n in range(20)
    ]
    return [*kernels, tiny.step(1, 1000, 1000), tiny.step(2, 2000, 1000)]


def _text(events: list[dict[str, Any]]) -> str:
    return json.dumps(tiny.document(events, distributedInfo={"rank": 0}), indent=1)


def _replaced(old: str, new: str) -> Callable[[], str]:
    def damaged() -> str:
        text = _text(_events())
        assert old in text
        return text.replace(old, new, 1)

    return damaged


def _with(**changed: Any) -> Callable[[], str]:
    """One more event like the first, but for these keys."""

    def damaged() -> str:
        events = _events()
        events.insert(1, {**events[0], **changed})
        return _text(events)

    return damaged


def _after(text: str) -> Callable[[], str]:
    """More text before the last bracket of the file."""
    return lambda: f"{_text(_events()).rstrip('}')}, {text}}}"


DAMAGES: dict[str, Callable[[], str]] = {
    # Text that is repaired.
    "name with quotes or backslashes that are not escaped, repaired": _replaced(
        "LABEL", '<lambda "f", "g">'
    ),
    "control character, treated as a space": _replaced("LABEL", "a\x01b"),
    "key without a value, value treated as absent": _replaced('"LABEL"', ""),
    "NaN or Infinity, treated as absent": _replaced('"LABEL"', "NaN"),
    "comma too many, ignored": _replaced('"LABEL"', '"LABEL",'),
    "chunk with invalid UTF-8, invalid bytes replaced": _replaced("gemm_0", "gemm\udcff"),
    # Text that cannot be.
    "unreadable event, omitted": _replaced('"LABEL"', "LABEL"),
    "unreadable stretch, skipped": _replaced('"args": {', '"args": {[}, "x": {'),
    "metadata after the events not readable": _after('"a": b'),
    "metadata after the events too long, omitted": _after(f'"a": "{"x" * (4 << 20)}"'),
    "second list traceEvents, not read": _after('"traceEvents": [{"name": "b", "ph": "X"}]'),
    "of the device time, by their durations": _replaced('"stream": 7', '"stream": {[,'),
    "of the device time, if those without a readable duration (1) take no longer than the longest "
    "that was read": _replaced('"dur": 60', '"dur": ]'),
    # Events that no device can have run.
    "device event recorded twice, counted once": _with(),
    "device event without a name, counted as compute": _with(name=""),
    "device event without a usable time or duration, omitted": _with(dur=None),
    "device event with a negative duration, omitted": _with(dur=-5),
    "device event longer than an hour, omitted": _with(dur=DAY_US / 2),
    "device event a day or more from the others, omitted": _with(ts=2.0 * DAY_US),
    "device event far longer than the trace, omitted": _with(dur=15e6),
    "step range without a usable time, omitted": lambda: _text(
        [*_events(), {**tiny.step(3, 3000, 1), "dur": "long"}]
    ),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_damage_is_said_and_a_whole_profile_is_not_damaged(sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("overlapkit.trace.read.json.events.HEAD_LIMIT", 1 << 20)
    path = tmp_path / "t.json"
    path.write_bytes(DAMAGES[sentence]().encode(errors="surrogateescape"))
    assert sentence in trace_of(str(path)).text
    path.write_text(_text(_events()))
    whole = trace_of(str(path))
    assert sentence not in whole.text
    assert whole.document["warnings"] == [] and whole.document["ranks"][0]["warnings"] == []


def _exported(folder: Path) -> str:
    m = Machine(TORCH_2_6)
    for _ in range(3):
        m.kernel(tiny.GEMM, 500)
    return nsight.write(m, folder / "t.sqlite")


OF_NSYS = {
    "device event without a usable time or duration, omitted": (
        "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = NULL WHERE correlationId = 101"
    ),
    "CUDA graph recorded as one event, counted as compute: record with --cuda-graph-trace=node": (
        "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE AS SELECT start + 1 AS start, end, deviceId, "
        "streamId, globalPid, correlationId FROM CUPTI_ACTIVITY_KIND_KERNEL"
    ),
}


@pytest.mark.parametrize("sentence", OF_NSYS)
def test_what_an_export_lacks_is_said(sentence, tmp_path):
    path = _exported(tmp_path)
    assert sentence not in trace_of(path).text
    with sqlite3.connect(path) as db:
        db.execute(OF_NSYS[sentence])
    assert sentence in trace_of(path).text


@pytest.mark.parametrize(
    "source",
    [
        "read/clean_columns.py",
        "read/json/events.py",
        "read/json/lost_events.py",
        "read/json/repair.py",
        "read/kineto_events.py",
        "read/nsys.py",
    ],
)
def test_every_sentence_of_the_source_has_its_row(source):
    keys = ["In msg nelems", "Out msg nelems"]
    keys += [f"Process Group {key}" for key in ("Name", "Description", "Ranks")]
    queries = ["SELECT name, sql FROM sqlite_master WHERE type = 'table'"]
    assert unknown(source, [*DAMAGES, *OF_NSYS, *keys, *queries]) == []
