"""What several ranks' profiles tell together: spread, the slowest, and who waits for whom.

Clocks of different hosts do not agree, so nothing here compares their timestamps. A collective
ends on all ranks of its group when the last one has joined and the data has moved: the shortest
duration among the ranks is the transfer, what is longer elsewhere is waiting.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from overlapkit.errors import InputError
from overlapkit.trace.rank_report import RankReport, median

NOTABLE_PCT = 10.0
"""Share of exposed communication from which waiting is worth a word."""

NEGLIGIBLE_NS = 1_000
"""Waiting, over all ranks, below which nobody was late for a collective."""


@dataclass(frozen=True)
class Waiting:
    """A rank's waiting for late peers, in nanoseconds over all its measured steps.

    Attributes:
        waiting_ns: its collectives' time beyond that of the last to join.
        exposed_ns: the part of that which can be exposed time.
        caused_ns: other ranks' waiting in collectives that it joined last.
        last_to_join: how many of the matched collectives it joined last.
        matched: collectives that could be matched with other ranks'.
    """

    waiting_ns: int
    exposed_ns: int
    caused_ns: int
    last_to_join: int
    matched: int


@dataclass(frozen=True)
class Across:
    """Several ranks together.

    Attributes:
        step_ns: median step time by rank.
        slowest: the rank with the longest median step.
        spread_ns: longest less shortest median step.
        spread_pct: that in percent of the shortest.
        waiting: by rank; empty where no collectives could be matched.
        late_rank: the rank that the others wait for, where one causes most of the waiting.
        exposed_waiting_pct: exposed waiting in percent of all exposed communication.
        notes: what could not be compared.
    """

    step_ns: dict[int, float]
    slowest: int
    spread_ns: float
    spread_pct: float
    waiting: dict[int, Waiting]
    late_rank: int | None
    exposed_waiting_pct: float | None
    notes: list[str]


def across(reports: Sequence[RankReport]) -> Across | None:
    """The ranks together; None for a single one."""
    ranks = [r for r in reports if r.rank is not None]
    if len(ranks) < 2 or len({r.rank for r in ranks}) < len(ranks):
        return None
    step = {r.rank or 0: median([t.step for t in r.measured]) for r in ranks}
    slowest = max(step, key=lambda rank: step[rank])
    shortest = min(step.values())
    waiting, notes = _waiting(ranks)
    late, share = None, None
    exposed = sum(t.exposed_comm for r in ranks for t in r.measured)
    if waiting:
        share = 100.0 * sum(w.exposed_ns for w in waiting.values()) / exposed if exposed else 0.0
        total = sum(w.waiting_ns for w in waiting.values())
        last = max(waiting, key=lambda rank: waiting[rank].caused_ns)
        # Of two ranks one always causes half or more.
        enough = 0.75 if len(waiting) == 2 else 0.6
        if share >= NOTABLE_PCT and waiting[last].caused_ns >= enough * total:
            late = last
    return Across(
        step,
        slowest,
        step[slowest] - shortest,
        100.0 * (step[slowest] - shortest) / shortest if shortest else 0.0,
        waiting,
        late,
        share,
        notes,
    )


def _waiting(reports: Sequence[RankReport]) -> tuple[dict[int, Waiting], list[str]]:
    by_key: dict[str, list[RankReport]] = {}
    for report in reports:
        for key in report.calls:
            by_key.setdefault(key, []).append(report)
    wait: Counter[int] = Counter()
    exposed_wait: Counter[int] = Counter()
    caused: Counter[int] = Counter()
    last: Counter[int] = Counter()
    matched: Counter[int] = Counter()
    notes = []
    for key, members in by_key.items():
        if len(members) < 2:
            continue
        counts = {len(r.calls[key][0]) for r in members}
        if len(counts) > 1:
            dimension, operation, _ = key.split("|", 2)
            notes.append(
                f"{dimension} {operation}: ranks show different numbers of calls, not matched"
            )
            continue
        for index in range(counts.pop()):
            lengths = {r.rank or 0: r.calls[key][0][index] for r in members}
            transfer = min(lengths.values())
            latest = min(lengths, key=lambda rank: lengths[rank])
            waited = sum(lengths.values()) - transfer * len(lengths)
            caused[latest] += waited
            last[latest] += waited > NEGLIGIBLE_NS
            for report in members:
                rank = report.rank or 0
                extra = lengths[rank] - transfer
                wait[rank] += extra
                exposed_wait[rank] += min(extra, report.calls[key][1][index])
                matched[rank] += 1
    if not matched:
        return {}, notes
    return {
        rank: Waiting(wait[rank], exposed_wait[rank], caused[rank], last[rank], matched[rank])
        for rank in sorted(matched)
    }, notes


_IN_NAME = (
    re.compile(r"rank[-_.\s\[(=]*(\d{1,6})", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z0-9])(?:gpu|worker|r)[-_.]?(\d{1,6})(?![0-9])", re.IGNORECASE),
    re.compile(r"(?:^|[^0-9a-z.])(\d{1,5})$", re.IGNORECASE),
)


def rank_in_name(path: str) -> int | None:
    """The rank that a file's name tells: rank3, rank_3, gpu3, trace_3.json; None where none."""
    stem = re.sub(r"(?:\.(?:gz|json|sqlite|pt|trace|pt\.trace))+$", "", PurePath(path).name)
    for pattern in _IN_NAME:
        matches = pattern.findall(stem)
        if matches:
            return int(matches[-1])
    return None


def settle_ranks(reports: list[RankReport], rank_from: str | None) -> list[RankReport]:
    """Give every report its rank and sort them by it.

    Args:
        rank_from: "json", "name", or None: the first that tells for all files.

    Raises:
        InputError: the source asked for does not tell.
    """
    if rank_from == "json":
        for report in reports:
            if report.rank is None:
                raise InputError(
                    f"--rank-from json: {report.path} has no distributedInfo.rank; use name"
                )
    elif rank_from == "name" or any(r.rank is None for r in reports):
        reports = _rank_by_name(reports, required=rank_from == "name")
    seen: dict[tuple[int | None, int], str] = {}
    for report in reports:
        key = (report.rank, report.device)
        if key in seen:
            report.warnings.append(f"rank {report.rank} is also that of {seen[key]}")
        seen[key] = report.path
    return sorted(reports, key=lambda r: (r.rank or 0, r.device))


def _rank_by_name(reports: list[RankReport], *, required: bool) -> list[RankReport]:
    """Ranks from the files' names; where those do not tell, and need not, from their order.

    Raises:
        InputError: they are required, and a name does not tell.
    """
    named = {r.path: rank_in_name(r.path) for r in reports}
    missing = [path for path, rank in named.items() if rank is None]
    if required and missing:
        raise InputError(f"--rank-from name: {missing[0]} names no rank; call it like rank3.json")
    several_devices = len(named) != len(reports)
    distinct = len(set(named.values())) == len(named)
    if not missing and (required or (distinct and not several_devices)):
        return [replace(r, rank=named[r.path]) for r in reports]
    for position, report in enumerate(reports):
        report.rank = position
        if len(reports) > 1:
            report.warnings.append(
                "no file tells its rank: ranks are the order of files and devices"
            )
    return reports
