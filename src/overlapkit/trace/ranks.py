"""Several ranks compared: the spread, the slowest, and which rank waits for which.

Clocks of different hosts do not agree, so timestamps of different ranks are never compared. A
collective ends on all ranks of its group when the last one has joined and the data has moved. So
its shortest duration among the ranks is the transfer, and whatever is longer is waiting.
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
"""Percentage of exposed communication from which waiting is attributed to a late rank."""

NEGLIGIBLE_NS = 1_000
"""Waiting, summed over all ranks, up to which no rank counts as late for a collective."""


@dataclass(frozen=True)
class Waiting:
    """How long a rank waits for others, in nanoseconds over all its measured steps.

    Attributes:
        waiting_ns: how much longer its collectives take than those of the last rank to join.
        exposed_ns: the part of that time that can be exposed.
        caused_ns: how long other ranks wait in collectives that it joined last.
        last_to_join: number of matched collectives that it joined last.
        matched: number of collectives that were matched with those of other ranks.
    """

    waiting_ns: int
    exposed_ns: int
    caused_ns: int
    last_to_join: int
    matched: int


@dataclass(frozen=True)
class Across:
    """Several ranks compared. Times are in nanoseconds.

    Attributes:
        step_ns: median step by rank.
        slowest: the rank with the longest median step.
        spread_ns: longest minus shortest median step.
        spread_pct: the same in percent of the shortest.
        waiting: by rank; empty where no collectives could be matched.
        late_rank: the rank that the others wait for; None where no rank causes most of the waiting.
        exposed_waiting_pct: exposed waiting in percent of all exposed communication; None where no
            collectives could be matched.
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
    """The ranks compared; None for a single rank, and where a rank appears twice."""
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
        # One of two ranks always causes half of it or more.
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
                f"{dimension} {operation}: ranks have different numbers of calls, which are not "
                "matched"
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
    """The rank in the name of a file, as rank3, gpu3 or trace_3.json; None without one."""
    stem = re.sub(r"(?:\.(?:gz|json|sqlite|pt|trace|pt\.trace))+$", "", PurePath(path).name)
    for pattern in _IN_NAME:
        matches = pattern.findall(stem)
        if matches:
            return int(matches[-1])
    return None


def settle_ranks(reports: list[RankReport], rank_from: str | None) -> list[RankReport]:
    """Give every report its rank, and sort them by rank.

    Args:
        reports: the reports on all files.
        rank_from: where ranks are read: "json" or "name". None takes the first of them that has the
            rank of every file, and otherwise the order of the files.

    Raises:
        InputError: the requested source lacks a rank.
    """
    if rank_from == "json":
        for report in reports:
            if report.rank is None:
                raise InputError(
                    f"--rank-from json: {report.path} has no distributedInfo.rank; "
                    "use --rank-from name"
                )
    elif rank_from == "name" or any(r.rank is None for r in reports):
        reports = _rank_by_name(reports, required=rank_from == "name")
    known: dict[tuple[int | None, int], str] = {}
    for report in reports:
        key = (report.rank, report.device)
        if key in known:
            report.warnings.append(f"rank {report.rank} is also the rank of {known[key]}")
        known[key] = report.path
    return sorted(reports, key=lambda r: (r.rank or 0, r.device))


def _rank_by_name(reports: list[RankReport], *, required: bool) -> list[RankReport]:
    """Ranks from the names of the files, or from their order where a name has none.

    Args:
        reports: the reports on all files.
        required: whether every name must have a rank.

    Raises:
        InputError: a name must have a rank, and has none.
    """
    named = {r.path: rank_in_name(r.path) for r in reports}
    missing = [path for path, rank in named.items() if rank is None]
    if required and missing:
        raise InputError(
            f"--rank-from name: the name {missing[0]} contains no rank; rename it, as in rank3.json"
        )
    several_devices = len(named) != len(reports)
    distinct = len(set(named.values())) == len(named)
    if not missing and (required or (distinct and not several_devices)):
        return [replace(r, rank=named[r.path]) for r in reports]
    for position, report in enumerate(reports):
        report.rank = position
        if len(reports) > 1:
            report.warnings.append(
                "not every file states its rank: ranks follow the order of files and devices"
            )
    return reports
