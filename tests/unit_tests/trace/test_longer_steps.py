"""Steps that are much longer than the median, and what filled them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from overlapkit.trace.rank_document import TraceRank
from overlapkit.trace.text import LONGER_SHOWN, longer_steps
from support.field.situations import SITUATIONS

MS = 1000.0


def rank(folder: Path, *longer: tuple[int, str, float]) -> TraceRank:
    """A rank of nine equal steps, but for parts of some that are longer by milliseconds."""
    found = msgspec.convert(SITUATIONS["torch 2.8 ddp"](folder).document["ranks"][0], TraceRank)
    steps = [msgspec.structs.replace(found.steps[0], name=f"s{number}") for number in range(9)]
    for number, part, ms in longer:
        step = steps[number]
        more = {part: getattr(step, part) + ms * MS, "step_us": step.step_us + ms * MS}
        steps[number] = msgspec.structs.replace(step, **more)
    usual = {name: getattr(steps[8], name) for name in ("step_us", "idle_us", "compute_us")}
    return msgspec.structs.replace(
        found, steps=steps, median=msgspec.structs.replace(found.median, **usual)
    )


def test_equal_steps_are_none(tmp_path: Path) -> None:
    assert longer_steps(rank(tmp_path)) == []


def test_the_longest_comes_first_with_what_filled_it(tmp_path: Path) -> None:
    one, other = longer_steps(rank(tmp_path, (1, "idle_us", 20.0), (4, "compute_us", 30.0)))
    assert one.startswith("s4 is 30.00 ms") and one.endswith("30.00 ms more compute.")
    assert other.startswith("s1 is 20.00 ms") and other.endswith("20.00 ms more idle.")


def test_a_few_are_named_and_the_others_counted(tmp_path: Path) -> None:
    lines = longer_steps(rank(tmp_path, *((n, "idle_us", 20.0 + n) for n in range(4))))
    assert len(lines) == LONGER_SHOWN + 1
    assert lines[-1] == "Others longer than the median by more than 10 %: 1."


def test_a_wait_before_the_next_steps_first_work_is_of_that_step(tmp_path: Path) -> None:
    (rank,) = SITUATIONS["late batch"](tmp_path).document["ranks"]
    for step in rank["steps"]:
        late = step["name"] == "ProfilerStep#11"
        assert (step["data_of_next_us"] > 5 * MS) == late
        assert step["data_of_next_us"] <= step["waiting_for_data_us"]
    (rank,) = SITUATIONS["late batch, taken ahead"](tmp_path).document["ranks"]
    (late,) = [step for step in rank["steps"] if step["waiting_for_data_us"] > 5 * MS]
    assert late["name"] == "ProfilerStep#12" and late["data_of_next_us"] < 0.1 * MS


def test_a_host_that_is_late_in_the_next_step_is_of_that_step(tmp_path: Path) -> None:
    (rank,) = SITUATIONS["late host"](tmp_path).document["ranks"]
    found = {step["name"]: step["host_of_next_us"] for step in rank["steps"]}
    assert found.pop("ProfilerStep#11") > 5 * MS
    assert max(found.values()) < 0.1 * MS


def test_a_diagnosis_of_one_step_alone_says_so(tmp_path: Path) -> None:
    found = {d["id"]: d for d in SITUATIONS["checkpoint"](tmp_path).document["diagnoses"]}
    assert set(found) == {"waits-for-host", "copies-exposed"}
    assert all(d["longer_steps"] == ["ProfilerStep#13"] for d in found.values())


def test_a_diagnosis_of_all_steps_names_none(tmp_path: Path) -> None:
    found = SITUATIONS["host late"](tmp_path).document["diagnoses"]
    assert found and all(d["longer_steps"] == [] for d in found)


def test_most_steps_without_communication_have_no_share_of_it(tmp_path: Path) -> None:
    (rank,) = SITUATIONS["accumulation"](tmp_path).document["ranks"]
    assert [step["overlap_pct"] is not None for step in rank["steps"]] == 2 * [*3 * [False], True]
    assert (rank["median"]["comm_us"], rank["median"]["overlap_pct"]) == (0.0, None)
