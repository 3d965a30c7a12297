"""Nsight Systems exports of other versions, with other columns."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options, RankReport

PROCESS = (1 << 56) | (1234 << 24)
THREAD = PROCESS | 7
NAMES = {1: "void gemm<int>(int)", 2: "ncclDevKernel_AllReduce(int)", 3: "gemm", 5: "iteration 5"}
# Start and end in nanoseconds, stream, correlation, name and short name.
KERNELS = [
    (10_000, 20_000, 7, 1, 1, 3),
    (15_000, 30_000, 20, 2, 2, 2),
    (110_000, 120_000, 7, 3, 1, 3),
    (115_000, 130_000, 20, 4, 2, 2),
]
LAUNCHES = [(1_000, 1), (2_000, 2), (100_000, 3), (101_000, 4)]


def export(
    path: Path,
    *,
    kernel_process: bool = True,
    launch_thread: bool = True,
    range_thread: bool = True,
    long_names: bool = True,
    strings: bool = True,
) -> RankReport:
    """Two steps of one process, without some of the columns."""

    def table(name: str, columns: dict[str, list[object]]) -> None:
        connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        rows = zip(*columns.values(), strict=True)
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)

    keys = ("start", "end", "streamId", "correlationId", "demangledName", "shortName")
    columns = {key: [row[i] for row in KERNELS] for i, key in enumerate(keys)}
    columns["deviceId"] = [0] * 4
    if kernel_process:
        columns["globalPid"] = [PROCESS] * 4
    if not long_names:
        del columns["demangledName"]
    launches: dict[str, list[object]] = {
        "start": [row[0] for row in LAUNCHES],
        "correlationId": [row[1] for row in LAUNCHES],
    }
    if launch_thread:
        launches["globalTid"] = [THREAD] * 4
    ranges: dict[str, list[object]] = {
        "start": [500, 50_000],
        "end": [50_000, 150_000],
        "text": [None, "iteration 6"],
        "textId": [5, None],
    }
    if range_thread:
        ranges["globalTid"] = [THREAD] * 2
    connection = sqlite3.connect(path)
    table("CUPTI_ACTIVITY_KIND_KERNEL", columns)
    table("CUPTI_ACTIVITY_KIND_RUNTIME", launches)
    table("NVTX_EVENTS", ranges)
    if strings:
        table("StringIds", {"id": list(NAMES), "value": list(NAMES.values())})
    connection.commit()
    connection.close()
    (report,) = analyse_file(str(path), Options())
    return report


@pytest.mark.parametrize(
    "lacking",
    [
        {},
        {"long_names": False},
        {"kernel_process": False},
        {"launch_thread": False},
        {"range_thread": False},
        {"kernel_process": False, "launch_thread": False},
        {"launch_thread": False, "range_thread": False},
    ],
)
def test_steps_and_parts_do_not_depend_on_the_columns(tmp_path, lacking):
    report = export(tmp_path / "t.sqlite", **lacking)
    assert [(t.window.number, t.step) for t in report.steps] == [(5, 100_000), (6, 40_000)]
    assert [t.exposed_comm for t in report.steps] == [10_000, 10_000]
    assert (report.whole.compute, report.whole.comm) == (20_000, 30_000)


def test_kernels_without_names_cause_a_warning(tmp_path):
    report = export(tmp_path / "t.sqlite", strings=False)
    assert any("4 x device event without a name" in w for w in report.warnings)


@pytest.mark.parametrize("calls", [1, 400])
def test_two_processes_on_one_gpu(tmp_path: Path, calls: int) -> None:
    """One of them can be a stray context with a single memset."""
    path = tmp_path / "two.sqlite"
    columns = "(start, end, deviceId, streamId, globalPid, correlationId, shortName)"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE StringIds (id, value)")
        connection.execute("INSERT INTO StringIds VALUES (1, 'gemm')")
        for table in ("KERNEL", "MEMSET"):
            connection.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_{table} {columns}")
        rows = [(1000 * i, 1000 * i + 600, 0, 7, 100 << 24, i + 1, 1) for i in range(400)]
        others = [(1000 * i, 1000 * i + 100, 0, 7, 101 << 24, i + 1, None) for i in range(calls)]
        for table, values in (("KERNEL", rows), ("MEMSET", others)):
            connection.executemany(
                f"INSERT INTO CUPTI_ACTIVITY_KIND_{table} VALUES (?, ?, ?, ?, ?, ?, ?)", values
            )
    first, *rest = analyse_file(str(path), Options())
    assert (first.kernels, first.whole.compute) == (400, 400 * 600)
    if calls == 1:
        assert not rest
        assert any("of another process) omitted" in w for w in first.warnings)
    else:
        (second,) = rest
        assert (second.kernels, second.whole.memory) == (400, 400 * 100)
