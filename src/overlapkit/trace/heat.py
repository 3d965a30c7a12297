"""Exposed communication over many ranks, as cells of more or less heat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from overlapkit.output.numbers import ms_of_us
from overlapkit.trace.document import TraceDocument
from overlapkit.trace.rank_document import TraceRank
from overlapkit.trace.rank_report import median

FEW_RANKS = 8
"""Ranks up to which a table of them is enough."""

HOTTEST = 9
"""The level of the most exposed rank; 0 is no exposed communication."""

RANK_ROWS = 16
"""Ranks up to which each has a row; beyond, only those with the longest and the shortest steps."""

NOTABLE = 0.01
"""Share of the step from which the exposed time of a dimension is shown."""

ROW = 32
"""Ranks in a row."""


@dataclass(frozen=True)
class Cell:
    """One rank.

    Attributes:
        rank: the rank.
        exposed_us: its exposed communication in the median step, in microseconds.
        level: the same from 0 to `HOTTEST`, where 0 is none and `HOTTEST` the most of all ranks.
    """

    rank: int
    exposed_us: float
    level: int


@dataclass(frozen=True)
class Heat:
    """Exposed communication over the ranks, of all dimensions or of one.

    Attributes:
        dimension: the dimension; None for all communication.
        rows: the ranks in order, in rows of `ROW`.
    """

    dimension: str | None
    rows: list[list[Cell]]

    @property
    def sentence(self) -> str:
        """The least and the most, and the ranks that have them."""
        cells = [cell for row in self.rows for cell in row]
        least = min(cells, key=lambda cell: cell.exposed_us)
        most = max(cells, key=lambda cell: cell.exposed_us)
        return (
            f"{self.dimension or 'all'}: from {ms_of_us(least.exposed_us)} ms (rank {least.rank}) "
            f"to {ms_of_us(most.exposed_us)} ms (rank {most.rank})"
        )


def longest_and_shortest(ranks: Sequence[TraceRank], detailed: TraceRank) -> Sequence[TraceRank]:
    """The ranks that have a row: all of a few, or those with the longest and shortest steps.

    Args:
        ranks: all ranks.
        detailed: one that has a row in any case.
    """
    if len(ranks) <= RANK_ROWS:
        return ranks
    ordered = sorted(ranks, key=lambda rank: -rank.median.step_us)
    chosen = [*ordered[: RANK_ROWS // 2], *ordered[-RANK_ROWS // 4 :], detailed]
    return [rank for rank in ranks if any(rank is one for one in chosen)]


def heat_maps(document: TraceDocument) -> list[Heat]:
    """Heat of all communication, then of each dimension where several have notable exposed time.

    None for few ranks, and where nothing notable is exposed.
    """
    ordered = sorted(document.ranks, key=lambda r: r.rank)
    ranks = [(rank, list(of)) for rank, of in groupby(ordered, key=lambda r: r.rank)]
    if len(ranks) <= FEW_RANKS:
        return []
    least = NOTABLE * document.slowest.median.step_us
    dimensions = list(
        dict.fromkeys(
            dimension
            for r in ordered
            for dimension, row in r.median.by_dimension.items()
            if row.exposed_comm_us > least
        )
    )
    if not dimensions:
        return []
    kinds: list[str | None] = [None, *(dimensions if len(dimensions) > 1 else [])]
    return [_heat(kind, [(rank, _exposed(of, kind)) for rank, of in ranks]) for kind in kinds]


def _exposed(of: list[TraceRank], dimension: str | None) -> float:
    """Exposed time of a rank; the median of its traces where it has several."""
    if dimension is None:
        return median([r.median.exposed_comm_us for r in of])
    found = [r.median.by_dimension.get(dimension) for r in of]
    return median([0.0 if row is None else row.exposed_comm_us for row in found])


def _heat(dimension: str | None, values: list[tuple[int, float]]) -> Heat:
    most = max(us for _, us in values)
    cells = [Cell(rank, us, round(HOTTEST * us / most) if most else 0) for rank, us in values]
    return Heat(dimension, [cells[at : at + ROW] for at in range(0, len(cells), ROW)])
