"""Idle time by its cause, and what copies are."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from support import tiny_trace as tiny


def host(name, ts, dur, cat="user_annotation", **args):
    event = {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": 1, "ts": ts, "dur": dur}
    return {**event, "args": args}


def diagnoses(tmp_path, events):
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    return {d.id: d for d in report.diagnoses}


def pair(launched, start, loader=None):
    """Work, idle time, and work that was launched at some time."""
    events = [
        host("cudaLaunchKernel", 0, 1, "cuda_runtime", correlation=1),
        host("cudaLaunchKernel", launched, 1, "cuda_runtime", correlation=2),
        tiny.kernel(tiny.GEMM, 10, 490, correlation=1),
        tiny.kernel(tiny.GEMM, start, 500, correlation=2),
    ]
    return events + ([host("enumerate(DataLoader)#x.__next__", *loader)] if loader else [])


def test_idle_time_has_the_diagnosis_of_its_cause(tmp_path):
    assert set(diagnoses(tmp_path, pair(900, 905, (500, 380)))) == {"waits-for-data"}
    assert set(diagnoses(tmp_path, pair(900, 905))) == {"waits-for-host"}
    assert set(diagnoses(tmp_path, pair(100, 905))) == {"device-idle"}
    assert diagnoses(tmp_path, pair(100, 505)) == {}


def test_without_launches_the_host_is_not_blamed(tmp_path):
    events = [tiny.kernel(tiny.GEMM, 10, 490), tiny.kernel(tiny.GEMM, 905, 500)]
    found = diagnoses(tmp_path, events)["device-idle"]
    assert "does not show whether the host is late" in found.message


@pytest.mark.parametrize(
    ("name", "word", "never"),
    [
        ("Memcpy HtoD (Pageable -> Device)", "pin_memory=True", "pinned already"),
        ("Memcpy HtoD (Pinned -> Device)", "pinned already", "pin_memory=True"),
        ("Memcpy DtoH (Device -> Pageable)", "less often", "pinned"),
        ("Memcpy DtoD (Device -> Device)", "beside compute", "pinned"),
    ],
)
def test_advice_on_copies_looks_at_what_they_are(name, word, never, tmp_path):
    events = [
        tiny.kernel(tiny.GEMM, 0, 800),
        tiny.kernel(name, 800, 200, cat="gpu_memcpy"),
        tiny.kernel(tiny.GEMM, 1000, 100),
    ]
    found = diagnoses(tmp_path, events)["copies-exposed"]
    assert name in found.message and word in found.remedy and never not in found.remedy
