"""Reports go to functions, to TensorBoard's writer and to runs of Weights & Biases."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from overlapkit import InputError
from overlapkit.monitor.report import Finding, OverlapReport, Regression
from overlapkit.monitor.sinks import sinks_of

REPORT = OverlapReport(
    step=1500,
    steps=2,
    rank=3,
    step_us=100_000.0,
    compute_us=60_000.0,
    exposed_comm_us=20_000.0,
    hidden_comm_us=5_000.0,
    exposed_memory_us=5_000.0,
    idle_us=15_000.0,
    waiting_for_data_us=4_000.0,
    waiting_for_host_us=0.0,
    exposed_by_dimension={"DP": 12_000.0, "TP": 0.0},
    findings=[
        Finding(id="x", message="It waits.", remedy="do y", cost_us=9_000.0, confidence="likely")
    ],
    doubts=[],
    warnings=[],
)


class Writer:
    """The part of SummaryWriter that is used, with its signatures."""

    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}
        self.texts: dict[str, str] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        assert global_step is not None
        self.scalars[tag] = scalar_value, global_step

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> None:
        self.texts[tag] = text_string


class Run:
    """The part of a run of Weights & Biases that is used."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Any], bool | None]] = []

    def log(
        self, data: dict[str, Any], step: int | None = None, commit: bool | None = None
    ) -> None:
        assert step is None
        self.rows.append((data, commit))


def deliver(to: Any, report: OverlapReport = REPORT) -> None:
    for sink in sinks_of(to):
        sink(report)


def test_a_function_gets_the_report() -> None:
    got: list[OverlapReport] = []
    deliver(got.append)
    assert got == [REPORT]


def test_a_writer_gets_scalars_in_milliseconds_at_the_step() -> None:
    writer = Writer()
    deliver(writer)
    assert writer.scalars["overlap/step_ms"] == (100.0, 1500)
    assert writer.scalars["overlap/exposed_DP_ms"] == (12.0, 1500)
    assert writer.scalars["overlap/regression"] == (0.0, 1500)
    assert "It waits." in writer.texts["overlap/report"]


def test_a_run_gets_one_row_that_the_training_commits() -> None:
    run = Run()
    deliver(run)
    ((row, commit),) = run.rows
    assert row["overlap/step"] == 1500 and row["overlap/idle_ms"] == 15.0
    assert commit is False


def test_several_get_the_same() -> None:
    writer, run, got = Writer(), Run(), []
    deliver([writer, run, got.append])
    assert writer.scalars and run.rows and got


def test_a_regression_is_a_scalar_that_can_be_alerted_on() -> None:
    writer = Writer()
    slower = Regression(
        step_us=2.0, usual_us=1.0, spread_us=0.0, part="idle", part_us=1.0, detail=""
    )
    deliver(writer, msgspec.structs.replace(REPORT, regression=slower))
    assert writer.scalars["overlap/regression"][0] == 1.0


@pytest.mark.parametrize("wrong", [None, 3, "print", [print, 3]])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="give a function"):
        sinks_of(wrong)


def test_the_text_has_the_parts_the_finding_and_the_remedy() -> None:
    text = str(REPORT)
    assert text.startswith("step 1500, rank 3: 100.0 ms = compute 60.00 + exposed communication")
    assert "(DP 12.00)" in text and "TP" not in text
    assert "(4.000 waiting for data)" in text
    assert text.endswith("It waits. (9.000 ms)\n  -> do y")
