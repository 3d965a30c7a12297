"""Profiles as frameworks write them: every statement of a report is true of the program."""

from __future__ import annotations

from functools import cache
from statistics import fmean

import pytest

from overlapkit.trace.measure.step_times import PARTS
from support.field.catalogue import PROGRAMS
from support.trace_answers import Answer, trace_of


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """What `trace` answers to a program's profile."""
    folder = tmp_path_factory.mktemp("field")

    @cache
    def answer(name: str) -> Answer:
        return trace_of(PROGRAMS[name].write(folder, name.replace(" ", "-")))

    return answer


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_ran_is_told(name, reported):
    truth = PROGRAMS[name].truth
    document = reported(name).document
    (rank,) = document["ranks"]
    assert document["framework"]["name"] == truth.framework
    assert set(rank["median"]["by_dimension"]) == truth.dimensions
    assert len(rank["steps"]) == (truth.steps or 0)
    assert rank["unit"] == truth.unit


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_wrong_is_told_and_nothing_else(name, reported):
    truth = PROGRAMS[name].truth
    answer = reported(name)
    document, text = answer.document, answer.text
    assert {d["id"] for d in document["diagnoses"]} == truth.diagnoses
    for words in truth.says:
        assert words in text
    shown = text
    for window in document["ranks"][0]["steps"]:
        # A range's own name is no statement.
        shown = shown.replace(window["name"], "")
    for words in truth.never:
        assert words not in shown


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_statement_contradicts_another(name, reported):
    document = reported(name).document
    (rank,) = document["ranks"]
    for window in [rank["whole"], *rank["steps"]]:
        parts = sum(window[f"{part}_us"] for part in PARTS)
        assert parts == pytest.approx(window["step_us"], abs=0.001)
    for earlier, later in zip(rank["steps"], rank["steps"][1:], strict=False):
        assert earlier["start_us"] + earlier["step_us"] <= later["start_us"] + 0.001
    for diagnosis in document["diagnoses"]:
        # Both are means over the steps, or of the whole trace.
        lengths = [step["step_us"] for step in rank["steps"] or [rank["whole"]]]
        assert 0 < diagnosis["cost_us"] <= fmean(lengths) * 1.001
        assert (diagnosis["rule"] is None) or document["framework"]["name"] == "megatron"
