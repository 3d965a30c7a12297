"""The values that rules and decisions are made of."""

from __future__ import annotations

import json

import msgspec

from megatron.bridge.training.decisions import RULES, Dimension
from overlapkit.explain.text import TITLES


def test_a_dimension_is_written_as_its_value() -> None:
    for member in Dimension:
        assert f"{member}" == str(member) == f"{member:s}" == member.value == member
        assert json.dumps(member) == msgspec.json.encode(member).decode() == f'"{member.value}"'


def test_every_rule_has_a_dimension_that_explain_shows() -> None:
    assert {rule.dimension for rule in RULES.values()} == set(TITLES)
    assert all(isinstance(rule.dimension, Dimension) for rule in RULES.values())
