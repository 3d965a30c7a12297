"""Ranges: which class's errors an estimate takes, and when two of them are told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from overlapkit.plan.estimate import sureness
from overlapkit.plan.estimate.costs import Costs, costs_of_run
from overlapkit.plan.estimate.machine import machine_of
from overlapkit.plan.estimate.sureness import (
    FEWEST,
    Errors,
    ErrorTable,
    Order,
    Range,
    error_table,
    range_of,
)
from support.plan_runs import effective_run, plain_machine, work_of


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ErrorTable(
        source="a test",
        classes={
            "h100 bf16 dense": Errors(FEWEST, 0.9, 1.1),
            "h200 bf16 dense": Errors(FEWEST - 1, 0.99, 1.01),
            "hopper dense": Errors(20, 0.8, 1.2),
        },
        order={"dense": Order(5, 1.1), "MoE": Order(5, 1.5)},
    )
    monkeypatch.setattr(sureness, "error_table", lambda: known)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("gpu", "settings", "expected"),
    [
        ("h100", {}, Range("h100 bf16 dense", True, FEWEST, 0.9, 1.1)),
        # Too few layouts say nothing about the next one.
        ("h200", {}, Range("hopper dense", False, 20, 0.8, 1.2)),
        ("b200", {}, None),
        ("h100", {"seq_length": 32768}, None),
        ("h100", {"num_moe_experts": 8, "moe_grouped_gemm": True}, None),
    ],
)
def test_a_range_is_of_its_own_class_or_of_the_generation(
    gpu: str, settings: dict[str, Any], expected: Range | None
) -> None:
    assert range_of(work_of(1, **settings), machine_of(gpu)) == expected


@pytest.mark.usefixtures("table")
def test_a_machine_of_no_data_sheet_was_never_compared() -> None:
    assert range_of(work_of(1), plain_machine()) is None


def test_a_range_holds_for_steps_and_tokens_alike() -> None:
    found = Range("h100 bf16 dense", True, 9, 0.8, 1.25)
    assert found.tokens(100) == (80, 125)
    assert found.steps(1) == (0.8, 1.25)


@pytest.mark.usefixtures("table")
def test_two_layouts_are_told_apart_beyond_what_pairs_are_misjudged_by() -> None:
    """Of mixtures the estimate must differ by more than of dense models."""
    mixture = {"num_moe_experts": 8, "moe_grouped_gemm": True}
    for settings, expected in (({}, True), (mixture, False)):
        run = effective_run(1, **settings)
        costs = costs_of_run(run, 1, machine_of("h100"))
        assert isinstance(costs, Costs)
        found = costs.summary(frozenset())
        faster = replace(found, tokens_per_s_per_gpu=found.tokens_per_s_per_gpu * 1.2)
        assert found.told_from(faster) == faster.told_from(found) == expected
        assert not found.told_from(found)


def test_the_table_is_sound() -> None:
    table = error_table()
    assert all(0 < one.lower <= one.upper and one.layouts for one in table.classes.values())
    assert all(one.apart >= 1 and one.pairs for one in table.order.values())
    assert table.classes["h100 bf16 dense"].layouts >= FEWEST
