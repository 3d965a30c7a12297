"""What reports call a rank, or one of several GPUs of a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overlapkit.trace.rank_document import TraceRank
    from overlapkit.trace.rank_report import RankReport


def label_of(one: RankReport | TraceRank, among: Sequence[RankReport | TraceRank]) -> str:
    """What one is called: by its rank; by its GPU where its process has several.

    Args:
        one: the one.
        among: all of them.
    """
    return f"{_kind(one, among)} {_number(one)}"


def labels_of(
    chosen: Sequence[RankReport | TraceRank], among: Sequence[RankReport | TraceRank]
) -> str:
    """What several are called, in the order in which they come: "rank 0, 2"."""
    by_kind: dict[str, list[str]] = {}
    for one in chosen:
        by_kind.setdefault(_kind(one, among), []).append(_number(one))
    return "; ".join(f"{kind} {', '.join(numbers)}" for kind, numbers in by_kind.items())


def _kind(one: RankReport | TraceRank, among: Sequence[RankReport | TraceRank]) -> str:
    if one.gpus == 1:
        return "rank"
    return "GPU" if len({each.rank for each in among}) == 1 else f"rank {one.rank or 0} GPU"


def _number(one: RankReport | TraceRank) -> str:
    """Its number; where it has several traces, with the number of this one."""
    number = str(one.device if one.gpus > 1 else one.rank or 0)
    return number if one.cycle is None else f"{number} cycle {one.cycle}"


def count_of(ranks: Sequence[TraceRank]) -> str:
    """How many ranks there are, or GPUs of one process."""
    count = len({rank.rank for rank in ranks})
    gpus = len({(rank.rank, rank.device) for rank in ranks})
    if all(rank.gpus == 1 for rank in ranks):
        return f"{gpus} rank{'s' if gpus > 1 else ''}"
    return f"{gpus} GPUs of one process" if count == 1 else f"{count} ranks with {gpus} GPUs"
