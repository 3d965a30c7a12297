"""The change between two generated runs is in the part that their scenarios change."""

from __future__ import annotations

import pytest

from overlapkit.trace.compare.comparison import compare
from overlapkit.trace.compare.side import side_of
from support.trace_generator import CHANGES, write_kineto
from support.trace_reports import analysed


@pytest.mark.parametrize("name", CHANGES)
def test_a_comparison_finds_the_part_that_changed(name, tmp_path):
    sides = []
    for label, scenario in zip(("base", "new"), CHANGES[name][:2], strict=True):
        folder = tmp_path / label
        folder.mkdir()
        sides.append(
            side_of(label, analysed(write_kineto(scenario.but(noise=0), folder), owners=True))
        )
    comparison = compare(*sides)
    parts = {p: comparison.part_change(p) for p in comparison.base.parts}
    assert sum(parts.values()) == pytest.approx(comparison.change, abs=1)
    moved = CHANGES[name][2]
    if not moved:
        assert comparison.judgement.verdict == "same"
        return
    assert comparison.judgement.verdict == "slower"
    assert max(parts, key=lambda p: parts[p]) == moved
    assert parts[moved] > 0.9 * comparison.change
    for side in sides:
        for part, owners in side.owners.items():
            assert sum(owners.values()) == pytest.approx(side.parts[part], abs=1)
