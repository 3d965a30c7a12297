"""What the device waits for while it is idle."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from support import tiny_trace as tiny

LOADER = "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"


def host(name, ts, dur, cat="user_annotation", **args):
    event = {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": 1, "ts": ts, "dur": dur}
    return {**event, "args": args}


def launched(ts, correlation, start, length):
    return [
        host("cudaLaunchKernel", ts, 2, "cuda_runtime", correlation=correlation),
        tiny.kernel(tiny.GEMM, start, length, correlation=correlation),
    ]


def report(tmp_path, events, **options):
    (one,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options(**options))
    return one


def waits(times):
    return times.idle, times.waiting_for_data, times.waiting_for_host


def test_waiting_for_data_and_for_the_host_are_parts_of_idle(tmp_path):
    events = [
        *launched(0, 1, 10, 90),
        host(LOADER, 100, 400),
        *launched(600, 2, 610, 100),
    ]
    # From 100 to 500 the loader; from there to the launch at 600 the host; its latency with it.
    assert waits(report(tmp_path, events).whole) == (510_000, 400_000, 110_000)


def test_work_that_was_launched_before_the_device_became_idle_does_not_wait_for_the_host(tmp_path):
    events = [*launched(0, 1, 10, 90), *launched(50, 2, 500, 100)]
    assert waits(report(tmp_path, events).whole) == (400_000, 0, 0)


def test_after_its_launch_work_waits_for_other_work(tmp_path):
    events = [*launched(0, 1, 10, 90), *launched(200, 2, 500, 100)]
    assert waits(report(tmp_path, events).whole) == (400_000, 0, 100_000)


def test_without_launches_only_waiting_for_data_is_known(tmp_path):
    events = [
        tiny.kernel(tiny.GEMM, 10, 90),
        tiny.kernel(tiny.GEMM, 600, 100),
        host(LOADER, 50, 250),
    ]
    assert waits(report(tmp_path, events).whole) == (500_000, 200_000, 0)


def test_the_end_of_the_last_step_waits_for_the_host(tmp_path):
    events = [
        *launched(0, 1, 10, 90),
        host("ProfilerStep#1", 0, 300),
        host(LOADER, 250, 100),
    ]
    (step,) = report(tmp_path, events).steps
    assert waits(step) == (200_000, 50_000, 150_000)


@pytest.mark.parametrize("frame", [True, False])
def test_what_compare_calls_the_owner_of_idle_time(tmp_path, frame):
    name = "torch/utils/data/dataloader.py(628): __next__" if frame else LOADER
    events = [
        *launched(0, 1, 10, 90),
        host(name, 100, 400, "python_function" if frame else "user_annotation"),
        *launched(600, 2, 610, 100),
    ]
    owners = report(tmp_path, events, owners=True).owners["idle"]
    assert owners["waiting for data"] == [400_000]
    assert sum(row[0] for row in owners.values()) == 510_000
