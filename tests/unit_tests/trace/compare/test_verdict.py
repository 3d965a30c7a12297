"""A verdict is given where enough comparable steps of both runs stand behind it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support import tiny_trace as tiny


def steps_of(path: Path, lengths: list[float], *, marked: bool = True, kernels: int = 1) -> str:
    """Steps of these lengths in ms, each ended by the start of the next one."""
    events, at = [], 10_000.0
    for number, length in enumerate(lengths):
        us = 1000 * length
        # The rest of a step is idle, and the range of the last one does not cover it.
        work = 0.98 * us / kernels
        for index in range(kernels):
            name = f"{tiny.GEMM}_{random.Random(f'{path}{number}{index}').random()}"
            kernel = tiny.GEMM if marked else name
            events.append(tiny.kernel(kernel, at + index * work, work))
        if marked:
            last = number + 1 == len(lengths)
            events.append(tiny.step(number, at, work * kernels if last else us))
        at += us
    return tiny.write(path, events)


def compared(overlapkit, tmp_path, base: list[float], new: list[float], *more: str):
    a, b = steps_of(tmp_path / "a.json", base), steps_of(tmp_path / "b.json", new)
    return overlapkit("compare", a, b, "--json", *more)


def test_a_change_within_the_spread_of_the_base_is_none(overlapkit, tmp_path):
    noisy = [100, 130, 95, 125, 105, 100]
    result = compared(overlapkit, tmp_path, noisy, [115, 115, 115, 115, 115, 115])
    assert (result.status, result.document["verdict"]) == (0, "same")
    assert result.document["verdict_holds"]
    assert result.document["spread_us"] >= 30_000


def test_a_change_beyond_the_spread_of_both_is_a_verdict_that_holds(overlapkit, tmp_path):
    result = compared(overlapkit, tmp_path, [100, 102, 101, 100, 100], [120, 121, 120, 122, 120])
    document = result.document
    assert (result.status, document["verdict"], document["verdict_holds"]) == (1, "slower", True)
    assert document["verdict_reasons"] == []


def test_half_a_percent_is_no_verdict_however_even_the_steps_are(overlapkit, tmp_path):
    result = compared(overlapkit, tmp_path, [100.0] * 6, [100.5] * 6)
    assert (result.status, result.document["verdict"]) == (0, "same")


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_steps_give_no_verdict_that_holds(overlapkit, tmp_path, count):
    result = compared(overlapkit, tmp_path, [100.0] * 6, [150.0] * count)
    document = result.document
    assert (result.status, document["verdict"], document["verdict_holds"]) == (0, "slower", False)
    (reason,) = document["verdict_reasons"]
    assert f"has {count} step" in reason
    document = compared(overlapkit, tmp_path, [100.0] * 6, [105.0] * count).document
    assert document["verdict"] == "unknown"


def test_the_last_step_lacks_the_time_to_the_next_one_and_is_no_spread(overlapkit, tmp_path):
    # Only what another step follows lasts to its start.
    result = compared(overlapkit, tmp_path, [100.0] * 3, [101.5] * 3)
    document = result.document
    assert (result.status, document["verdict"]) == (1, "slower")
    assert document["base"]["step_us"] == pytest.approx(100_000)
    assert document["base"]["steps"] == 3


def test_recordings_without_steps_give_no_verdict(overlapkit, tmp_path):
    a = steps_of(tmp_path / "a.json", [100.0] * 2, marked=False, kernels=3)
    b = steps_of(tmp_path / "b.json", [200.0] * 2, marked=False, kernels=3)
    result = overlapkit("compare", a, b, "--json")
    document = result.document
    assert (result.status, document["verdict"]) == (0, "unknown")
    assert not document["has_steps"] and document["base"]["steps_from"] is None
    assert len(document["verdict_reasons"]) == 2
    text = overlapkit("compare", a, b).out
    assert "No change" not in text and "a step" not in text and "Median step" not in text


def repeated(path: Path, length: float, kernels: int = 30, times: int = 6) -> str:
    """Iterations without marks: the same kernels in the same order."""
    events = [
        tiny.kernel(f"gemm_{index}", 1000 * (n * kernels + index) * length, 900 * length)
        for n in range(times)
        for index in range(kernels)
    ]
    return tiny.write(path, events)


def test_repeated_kernels_are_compared_where_no_steps_are_marked(overlapkit, tmp_path):
    a, b = repeated(tmp_path / "a.json", 1.0), repeated(tmp_path / "b.json", 1.4)
    result = overlapkit("compare", a, b, "--json")
    document = result.document
    assert (result.status, document["verdict"]) == (1, "slower")
    assert document["base"]["steps_from"] == "repetition"
    assert document["change_pct"] == pytest.approx(40, abs=0.5)


def test_repeated_sequences_of_other_lengths_give_no_verdict(overlapkit, tmp_path):
    a, b = repeated(tmp_path / "a.json", 1.0), repeated(tmp_path / "b.json", 1.0, kernels=60)
    result = overlapkit("compare", a, b, "--json")
    assert (result.status, result.document["verdict"]) == (0, "unknown")
    assert "may not be the same work" in result.document["verdict_reasons"][0]


def test_steps_that_do_not_stand_for_the_trace_give_no_verdict(overlapkit, tmp_path):
    def written(name: str, length: float) -> str:
        events = [tiny.kernel(tiny.GEMM, 0, 9_000_000)]
        for number in range(4):
            at = 10_000_000 + 1000 * number * length
            events += [tiny.kernel(tiny.GEMM, at, 900 * length)]
            events += [tiny.step(number, at, 900 * length)]
        return tiny.write(tmp_path / name, events)

    result = overlapkit("compare", written("a.json", 100), written("b.json", 200), "--json")
    assert (result.status, result.document["verdict"]) == (0, "unknown")
    assert "work is inside its steps" in result.document["verdict_reasons"][0]


def test_each_part_has_its_percent(overlapkit, tmp_path):
    document = compared(overlapkit, tmp_path, [100.0] * 6, [150.0] * 6).document
    compute = document["parts"][0]
    assert compute["change_pct"] == pytest.approx(
        100 * compute["change_us"] / compute["base_us"], abs=0.001
    )
    assert document["parts"][1]["change_pct"] is None
