"""The record of the hunts still fits the source."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec

from megatron.bridge.training.decisions import STOPS
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import Stack
from overlapkit.config.effective import make_effective
from overlapkit.config.run import read_settings
from overlapkit.config.yaml_file import Document
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


FINDINGS = RECORD.with_name("hunt-findings.json")


def test_each_finding_was_shown_in_every_turn_and_its_remedy_is_right() -> None:
    for name, one in json.loads(FINDINGS.read_text())["cases"].items():
        assert len(one["outcomes"]) >= 2, name
        assert "equal" not in one["outcomes"], name
        assert set(one.get("with the remedy", ["equal"])) == {"equal"}, name


def test_the_rules_find_what_was_found() -> None:
    for name, one in json.loads(FINDINGS.read_text())["cases"].items():
        settings = read_settings(Document(name, one["sections"]))
        settings = replace(settings, stacks=(Stack("0.16.1"),))
        _, update = make_effective(settings, one["ranks"], AssumedSoftware(te=None))
        assert one["rule"] in {d.rule for d in update.decisions if d.outcome in STOPS}, name
