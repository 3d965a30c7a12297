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


def stepped(steps, *, pause=0, wait=900, compute=500):
    """Steps that begin with a wait for data, then launch one kernel; the host waits for it."""
    events = []
    for number in range(steps):
        begin = 1000 + number * (wait + compute + 20 + pause)
        launch = begin + wait
        end = launch + 10 + compute
        events += [
            host(f"ProfilerStep#{number + 3}", begin, end - begin),
            host("enumerate(DataLoader)#x.__next__", begin, wait),
            host("cudaLaunchKernel", launch, 1, "cuda_runtime", correlation=number + 1),
            tiny.kernel(tiny.GEMM, launch + 10, compute, correlation=number + 1),
        ]
    return events


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_the_last_step_does_not_count_for_idle_time_since_nothing_ends_its_wait(steps, tmp_path):
    found = diagnoses(tmp_path, stepped(steps))["waits-for-data"]
    assert (found.cost_us, found.confidence) == (900.0, "likely")
    assert found.evidence == {"waiting_us": 900.0}


@pytest.mark.parametrize(("steps", "which"), [(1, "the step"), (3, "each step")])
def test_a_wait_before_a_step_that_none_precedes_is_told(steps, which, tmp_path):
    found = diagnoses(tmp_path, stepped(steps, pause=4000))["waits-for-data"]
    assert f"before the first kernel of {which}. No profiled step holds" in found.message
    assert found.evidence == {"waiting_us": 900.0, "before_step_us": 900.0}
    assert (found.cost_us, found.confidence) == (900.0, "possible")


def test_a_wait_before_a_step_beside_work_on_the_device_is_not_told(tmp_path):
    earlier = [
        host("cudaLaunchKernel", 900, 1, "cuda_runtime", correlation=9),
        tiny.kernel(tiny.GEMM, 950, 940, correlation=9),
    ]
    assert "waits-for-data" not in diagnoses(tmp_path, stepped(1) + earlier)
