"""A step is called slower only beside earlier ones, and the part that grew is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from overlapkit.monitor.history import MOST, History
from overlapkit.monitor.report import OverlapReport

USUAL = OverlapReport(
    step=1,
    steps=2,
    rank=0,
    step_us=100_000.0,
    compute_us=60_000.0,
    exposed_comm_us=20_000.0,
    hidden_comm_us=5_000.0,
    exposed_memory_us=5_000.0,
    idle_us=15_000.0,
    waiting_for_data_us=1_000.0,
    waiting_for_host_us=4_000.0,
    exposed_by_dimension={"DP": 12_000.0, "TP": 8_000.0},
    findings=[],
    doubts=[],
    warnings=[],
)


@dataclass
class Grown:
    field: str
    by: float
    also: dict[str, Any]

    @property
    def report(self) -> OverlapReport:
        return msgspec.structs.replace(
            USUAL,
            step_us=USUAL.step_us + self.by,
            **{self.field: getattr(USUAL, self.field) + self.by},
            **self.also,
        )


def history(*steps: float) -> History:
    made = History()
    for us in steps:
        made.judge(longer(us - USUAL.step_us))
    return made


def longer(by: float) -> OverlapReport:
    return Grown("compute_us", by, {}).report


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_nothing_is_slower_than_fewer_than_three(earlier: int) -> None:
    assert history(*[100_000.0] * earlier).judge(longer(900_000.0)) is None


@pytest.mark.parametrize(
    ("grown", "part", "detail"),
    [
        (Grown("compute_us", 20_000, {}), "compute", ""),
        (Grown("exposed_memory_us", 20_000, {}), "exposed memory", ""),
        (
            Grown(
                "exposed_comm_us", 20_000, {"exposed_by_dimension": {"DP": 12_000, "TP": 28_000}}
            ),
            "exposed communication",
            "TP",
        ),
        (
            Grown("exposed_comm_us", 20_000, {"exposed_by_dimension": {"DP": 12_000, "EP": 9_000}}),
            "exposed communication",
            "EP",
        ),
        (Grown("idle_us", 20_000, {"waiting_for_data_us": 21_000}), "idle", "waiting for data"),
        (Grown("idle_us", 20_000, {}), "idle", ""),
    ],
)
def test_the_part_that_grew_is_named(grown: Grown, part: str, detail: str) -> None:
    found = history(100_000, 101_000, 99_000).judge(grown.report)
    assert found is not None
    assert (found.part, found.detail, found.part_us) == (part, detail, 20_000)
    assert found.usual_us == 100_000
    assert part in str(found) and detail in str(found)


def test_a_step_within_the_spread_of_earlier_ones_is_not_slower() -> None:
    assert history(80_000, 100_000, 120_000, 90_000, 110_000).judge(longer(30_000)) is None
    assert history(99_900, 100_000, 100_100).judge(longer(30_000)) is not None


def test_equal_steps_do_not_make_a_small_change_a_regression() -> None:
    assert history(*[100_000.0] * 5).judge(longer(4_000)) is None
    assert history(*[100_000.0] * 5).judge(longer(6_000)) is not None


def test_one_slow_window_does_not_change_what_is_usual() -> None:
    kept = history(*[100_000.0] * 5)
    assert kept.judge(longer(300_000)) is not None
    found = kept.judge(longer(20_000))
    assert found is not None and found.usual_us == 100_000


def test_a_lasting_change_becomes_usual() -> None:
    kept = history(*[100_000.0] * MOST)
    judged = [kept.judge(longer(50_000)) for _ in range(MOST)]
    assert judged[0] is not None and judged[-1] is None


def test_a_report_with_doubts_is_neither_judged_nor_kept() -> None:
    kept = history(100_000, 100_000)
    doubtful = msgspec.structs.replace(longer(900_000), doubts=["the steps do not stand for it"])
    assert kept.judge(doubtful) is None
    assert kept.judge(longer(900_000)) is None
