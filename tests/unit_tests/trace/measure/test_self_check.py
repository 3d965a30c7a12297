"""A report says how far its own figures can be relied on."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from support import tiny_trace as tiny


def check(tmp_path, events):
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    return report, report.check


def test_work_outside_steps_is_said_and_no_diagnosis_rests_on_the_steps(tmp_path):
    events = [
        tiny.kernel(tiny.REDUCE_SCATTER, 0, 100, **{"Process Group Description": "mesh_dp"}),
        tiny.kernel(tiny.GEMM, 100, 100),
        tiny.step(1, 0, 100),
    ]
    report, found = check(tmp_path, events)
    assert (found.work_in_steps, found.steps_of_trace) == (0.5, 0.5)
    assert not report.diagnoses
    (doubt,) = found.doubts
    assert "Only 50 % of the device's work is inside steps" in doubt


def test_nothing_is_doubted_where_steps_cover_the_work(tmp_path):
    events = [
        tiny.kernel(tiny.REDUCE_SCATTER, 0, 100, **{"Process Group Description": "mesh_dp"}),
        tiny.kernel(tiny.GEMM, 100, 100),
        tiny.step(1, 0, 100),
        tiny.step(2, 100, 100),
    ]
    _, found = check(tmp_path, events)
    assert (found.work_in_steps, found.steps_of_trace, found.known_communication) == (1, 1, 1)
    assert found.doubts == []


def test_communication_without_a_known_operation_is_named(tmp_path):
    events = [
        tiny.kernel("ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", 0, 300),
        tiny.kernel(tiny.REDUCE_SCATTER, 300, 100, **{"Process Group Description": "mesh_dp"}),
    ]
    _, found = check(tmp_path, events)
    assert found.known_communication == pytest.approx(0.25)
    (doubt,) = found.doubts
    assert "75 % of the communication" in doubt and "ncclDevKernel_Generic" in doubt


def test_shares_that_do_not_apply_are_absent(tmp_path):
    _, found = check(tmp_path, [tiny.kernel(tiny.GEMM, 0, 10)])
    assert (found.work_in_steps, found.steps_of_trace, found.known_communication) == (
        None,
        None,
        None,
    )


def test_the_report_begins_with_the_doubt(overlapkit, tmp_path):
    events = [
        tiny.kernel(tiny.GEMM, 0, 100),
        tiny.kernel(tiny.GEMM, 100, 300),
        tiny.step(1, 0, 100),
    ]
    result = overlapkit("trace", tiny.write(tmp_path / "t.json", events))
    assert "Only 25 % of the device's work" in " ".join(result.out.split("\n")[1:3])
    assert "Nothing stands out" not in result.out


def test_a_trace_without_steps_is_not_described_by_steps(overlapkit, tmp_path):
    events = [
        tiny.kernel(tiny.REDUCE_SCATTER, 0, 100, **{"Process Group Description": "mesh_dp"}),
        tiny.kernel(tiny.GEMM, 1000, 100),
    ]
    path = tiny.write(tmp_path / "t.json", events)
    html = tmp_path / "page.html"
    words = overlapkit("trace", path, "--html", str(html)).out
    assert "whole trace" in words
    for text in (words.replace("no steps are marked", ""), html.read_text()):
        body = text.partition("</style>")[2] or text
        assert " a step" not in body and "per step" not in body and "median step" not in body
