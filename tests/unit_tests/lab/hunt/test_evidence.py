"""The record of the hunts still fits the source."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec

from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.document import covered
from overlapkit.lab.hunt.generate import allowed, grid_pairs

RECORD = Path(__file__).parents[4] / "docs" / "evidence" / "lab-hunt.json"


def test_the_counts_of_the_record_are_those_of_its_cases() -> None:
    record = json.loads(RECORD.read_text())
    cases = [msgspec.convert(one["features"], Case) for one in record["tried"]]
    assert record["cases"] == len(cases)
    assert record["fates"] == Counter(one["fate"] for one in record["tried"])
    pairs = covered(cases)
    assert record["pairs"] == len(pairs)
    assert record["pairs that the grid does not have"] == len(pairs - set(grid_pairs()))


def test_what_equals_the_unpartitioned_model_is_allowed() -> None:
    record = json.loads(RECORD.read_text())
    for one in record["tried"]:
        case = msgspec.convert(one["features"], Case)
        assert one["fate"] != "equal" or allowed(case), case.words
