"""Reports on generated profiles."""

from __future__ import annotations

from typing import Any

from overlapkit.trace.analyse import analyse
from overlapkit.trace.rank_report import Options, RankReport
from overlapkit.trace.ranks import settle_ranks
from support.trace_generator import SCENARIOS, RankTruth, Scenario


def quick(name: str) -> Scenario:
    """Two steps of a scenario, without the noise of a real host, which other tests read."""
    return SCENARIOS[name].but(noise=0, steps=2)


def analysed(truths: list[RankTruth], **options: Any) -> list[RankReport]:
    """The reports on generated files, by rank."""
    reports = analyse([t.path for t in truths], Options(**options))
    return settle_ranks(reports, "name" if len(truths) > 1 else None)
