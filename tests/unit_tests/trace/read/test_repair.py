"""Text that profilers write and that is not JSON: repaired and counted, or said to be missing."""

from __future__ import annotations

import json

import pytest

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options, RankReport
from overlapkit.trace.read.json.repair import repair_strings
from overlapkit.trace.read.kineto_events import read_events
from overlapkit.trace.read.recorded import Call
from support import tiny_trace as tiny

COLLECTIVE = {
    "Collective name": "allreduce",
    "In msg nelems": 1000,
    "dtype": "BFloat16",
    "Group size": 8,
    "Process Group Name": "0",
    "Process Group Description": "DESCRIPTION",
    "Process Group Ranks": "[0, 1]",
}
MANY = 2500
"""Events of a file of several chunks."""


def events(**more) -> list[dict]:
    return [
        tiny.kernel(tiny.REDUCE_SCATTER, 1000 + 10 * i, 7, correlation=i + 1, **COLLECTIVE, **more)
        for i in range(MANY)
    ]


def report_of_text(tmp_path, text: str) -> RankReport:
    path = tmp_path / "rank0.json"
    path.write_text(text, encoding="utf-8")
    (report,) = analyse_file(str(path), Options())
    return report


def figures(report: RankReport) -> tuple[int, dict[str, int]]:
    return report.kernels, dict(report.whole.parts)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"Process Group Description": "DESCRIPTION"', '"Process Group Description": ', "key"),
        ('"dtype": "BFloat16"', '"dtype":', "key"),
        ('"Process Group Ranks": "[0, 1]"', '"Process Group Ranks" :\n', "key"),
        ('"Group size": 8', '"Group size": NaN', "NaN"),
        ('"Group size": 8', '"Group size": -Infinity', "NaN"),
        ('"Process Group Ranks": "[0, 1]"', '"Process Group Ranks": "[0, 1]",', "comma"),
        ('"Group size": 8', '"Group size": -nan(ind)', "NaN"),
        ('"Group size": 8', '"Group size": 8, ', "comma"),
        ('"args": {', '"args": {, ', "comma"),
        ("DESCRIPTION", "C:\\Users\\new", "escaped"),
        ("DESCRIPTION", "C:\\new\\", "escaped"),
        ("DESCRIPTION", '<lambda "f", "g" (x)>', "escaped"),
        ("DESCRIPTION", "tab\tand\x01more", "control"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("times", [1, MANY])
def test_known_faults_cost_nothing_and_are_said(tmp_path, old, new, what, indent, times):
    whole = json.dumps(tiny.document(events()), indent=indent)
    truth = figures(report_of_text(tmp_path, whole))
    assert truth[0] == MANY
    report = report_of_text(tmp_path, whole.replace(old, new, times))
    assert figures(report) == truth
    said = [w for w in report.warnings if w.startswith(f"{times} x") and what in w]
    assert len(said) == 1, report.warnings


def test_what_is_beside_an_empty_text_is_read(tmp_path):
    text = json.dumps(tiny.document([tiny.kernel(tiny.ALL_GATHER, 1, 2, **COLLECTIVE)]))
    path = tmp_path / "t.json"
    path.write_text(text.replace('"DESCRIPTION"', ""))
    (call,) = read_events(str(path)).calls
    assert call == Call("allreduce", 1000, None, "BFloat16", 8, "0", None, (0, 1))


def test_names_that_look_like_faults_stay(tmp_path):
    """Only in a chunk that must be repaired is there anything to confuse."""
    names = ["a:,b", "f<1,2,>", "[NaN]", "g(nan,)", 'q":,', "x, }", '{"ph": "X"}, {"ph": "X"']
    kernels = [tiny.kernel(name, 100 * i, 7) for i, name in enumerate(names)]
    faulty = tiny.kernel(tiny.ALL_GATHER, 5000, 5, **COLLECTIVE)
    text = json.dumps(tiny.document([*kernels, faulty]))
    path = tmp_path / "t.json"
    path.write_text(text.replace('"DESCRIPTION"', ""))
    reading = read_events(str(path))
    assert list(reading.names) == [*names, tiny.ALL_GATHER]


def test_unreadable_kernels_are_counted_with_their_share(tmp_path):
    text = json.dumps(tiny.document(events()), indent=1)
    bad = '"stream": {[,'
    report = report_of_text(tmp_path, text.replace('"stream": 7', bad, MANY // 10))
    assert report.kernels == MANY - MANY // 10
    said = f"{MANY // 10} device events are unreadable and omitted: 10 % of the device time"
    assert any(w.startswith(said) for w in report.warnings), report.warnings


def test_unreadable_kernels_without_a_duration_are_bounded(tmp_path):
    text = json.dumps(tiny.document([*events(), tiny.kernel("long", 10**6, 1000)]))
    damaged = text.replace('"dur": 7, "args": {"device": 0', '"dur": ], "args": {"device": ', 2)
    report = report_of_text(tmp_path, damaged)
    assert report.kernels == MANY - 1
    # Two times 1,000 us beside 18,486 us that were read.
    said = "2 device events are unreadable and omitted: up to 9.8 % of the device time"
    assert any(w.startswith(said) for w in report.warnings), report.warnings


def test_a_missing_quote_is_not_repaired_into_a_longer_name():
    assert repair_strings(b'{"cat": "kernel, "name": "x", "dur": 5}') is None


@pytest.mark.parametrize("category", ['ker"nel', "ker\\qnel", '"kernel', 'kernel""'])
def test_a_damaged_category_is_not_repaired_into_another(tmp_path, category):
    text = json.dumps(tiny.document(events()), indent=1)
    damaged = text.replace('"cat": "kernel"', f'"cat": "{category}"', 1)
    report = report_of_text(tmp_path, damaged)
    assert report.kernels == MANY - 1
    assert any("unreadable" in w for w in report.warnings), report.warnings


@pytest.mark.parametrize("first_key", ["ph", "name"])
def test_a_second_list_of_events_is_said(tmp_path, first_key):
    def listed(name: str) -> str:
        event = tiny.kernel(name, 1, 2)
        ordered = {first_key: event[first_key], **event}
        return json.dumps(tiny.document([ordered]))

    report = report_of_text(tmp_path, f"{listed('a')[:-1]}, {listed('b')[1:]}")
    read_both = report.kernels == 2
    said = "unreadable stretch" if read_both else "second list traceEvents, not read"
    assert any(said in w for w in report.warnings), report.warnings


def steps_of(text: bytes, path) -> int:
    """How many lines of the readers run for this text: a measure of time that does not vary."""
    import sys

    path.write_bytes(text)
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return count

    sys.settrace(count)
    try:
        read_events(str(path))
    except InputError:
        pass
    finally:
        sys.settrace(None)
    return lines


@pytest.mark.parametrize(
    "unit",
    [
        '{"ph":"X",', '{"ph":"X","args":[', '"', '\\"', '{"', '"traceEvents":[', "[", "]", "}", "{",
        '{"ph":"X"},', '{"ph":"X","name":"a"b","dur":},', '"a":,', '\\q', '\\', ",", ",]", '{"a":"',
        '{"ph":"X","name":"\\', ' ', '{"ph":"X"}]', 'NaN,', '"ts":NaN ', '{"cat":"kernel","dur":',
    ],
)  # fmt: skip
def test_work_grows_with_the_length_of_damaged_text(tmp_path, unit):
    path = tmp_path / "t.json"
    few, many = (
        steps_of(b'{"traceEvents":[{"ph":"X"},' + (unit * (length // len(unit))).encode(), path)
        for length in (4_000, 16_000)
    )
    assert many <= 6 * few + 3000
