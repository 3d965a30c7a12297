"""Several ranks compared: the spread, the slowest, and which rank waits for which.

Clocks of different hosts do not agree, so timestamps of different ranks are never compared. A
collective ends on all ranks of its group when the last one has joined and the data has moved. So
its shortest duration among the ranks is the transfer, and whatever is longer is waiting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePath

import numpy as np

from overlapkit.errors import InputError
from overlapkit.trace.rank_report import RankReport, median

NOTABLE_PCT = 10.0
"""Percentage of exposed communication from which waiting is attributed to a late rank."""

_NAMED = 3
"""Ranks, and groups of them, that a note names; of the others it says how many there are."""

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
    """The ranks compared; None for a single rank, and where a rank appears twice.

    Several cycles of a rank are one rank.
    """
    ranks = [r for r in reports if r.rank is not None]
    if len({r.rank for r in ranks}) < 2:
        return None
    if len({(r.rank, r.cycle) for r in ranks}) < len(ranks):
        return None
    measured: dict[int, list[float]] = {}
    for r in ranks:
        measured.setdefault(r.rank or 0, []).extend(t.step for t in r.measured)
    step = {rank: median(times) for rank, times in measured.items()}
    slowest = max(step, key=lambda rank: step[rank])
    shortest = min(step.values())
    waiting, notes = _waiting(ranks)
    notes += _different_steps(ranks)
    late, share = None, None
    exposed = sum(t.exposed_comm for r in ranks for t in r.measured)
    for rank, found in waiting.items():
        # Collectives that run at the same time are exposed once.
        own = sum(t.exposed_comm for r in ranks if r.rank == rank for t in r.measured)
        waiting[rank] = replace(found, exposed_ns=min(found.exposed_ns, own))
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


def _different_steps(reports: Sequence[RankReport]) -> list[str]:
    """A note where ranks were measured in different steps."""
    numbers: dict[int, list[int]] = {}
    for r in reports:
        steps = numbers.setdefault(r.rank or 0, [])
        steps += [t.window.number for t in r.steps if t.window.number is not None]
    ranks: dict[tuple[int, ...], list[int]] = {}
    for rank, steps in numbers.items():
        ranks.setdefault(tuple(sorted(steps)), []).append(rank)
    if len(ranks) < 2:
        return []
    texts = []
    for chosen, of in sorted(ranks.items(), key=lambda item: -len(item[1]))[:_NAMED]:
        more = f" and {len(of) - _NAMED} more" if len(of) > _NAMED else ""
        which = f"{len(chosen)}, from {chosen[0]} to {chosen[-1]}" if chosen else "none"
        texts.append(f"{which} (rank {', '.join(map(str, of[:_NAMED]))}{more})")
    rest = f"; and {len(ranks) - _NAMED} other choices" if len(ranks) > _NAMED else ""
    return [f"ranks were measured in different steps: {'; '.join(texts)}{rest}"]


def steps_by_rank(reports: Sequence[RankReport]) -> dict[int, int]:
    """How many steps of each rank were measured, in all its cycles."""
    steps: dict[int, int] = {}
    for r in reports:
        steps[r.rank or 0] = steps.get(r.rank or 0, 0) + max(1, len(r.measured))
    return steps


def _waiting(reports: Sequence[RankReport]) -> tuple[dict[int, Waiting], list[str]]:
    """How long each rank waits, from the calls of each cycle."""
    # The n-th cycle of one rank is matched with the n-th of another: both have recorded it.
    by_key: dict[tuple[int | None, str], list[RankReport]] = {}
    for report in reports:
        for key in report.calls:
            by_key.setdefault((report.cycle, key), []).append(report)
    place = {rank: index for index, rank in enumerate(sorted({r.rank or 0 for r in reports}))}
    wait, exposed_wait, caused, last, matched = np.zeros((5, len(place)), dtype=np.int64)
    notes: dict[str, None] = {}
    for (_, key), members in by_key.items():
        if len(members) < 2:
            continue
        counts = {len(r.calls[key][0]) for r in members}
        if len(counts) > 1:
            operation, _, group = key.partition("|")
            notes[
                f"{operation} of {group if 0 < len(group) < 40 else 'a group'}: ranks have "
                "different numbers of calls, which are not matched"
            ] = None
            continue
        # A row for each rank, a column for each call.
        lengths = np.asarray([r.calls[key][0] for r in members], dtype=np.int64)
        exposed = np.asarray([r.calls[key][1] for r in members], dtype=np.int64)
        rows = np.asarray([place[r.rank or 0] for r in members])
        extra = lengths - lengths.min(axis=0)
        waited = extra.sum(axis=0)
        latest = rows[lengths.argmin(axis=0)]
        np.add.at(caused, latest, waited)
        np.add.at(last, latest, waited > NEGLIGIBLE_NS)
        wait[rows] += extra.sum(axis=1)
        exposed_wait[rows] += np.minimum(extra, exposed).sum(axis=1)
        matched[rows] += lengths.shape[1]
    columns = zip(*(c.tolist() for c in (wait, exposed_wait, caused, last, matched)), strict=True)
    found = {rank: Waiting(*figures) for rank, figures in zip(place, columns, strict=True)}
    return {rank: w for rank, w in found.items() if w.matched}, list(notes)


_IN_NAME = (
    re.compile(r"rank[-_.\s\[(=]*(\d{1,6})", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z0-9])(?:gpu|worker|r)[-_.]?(\d{1,6})(?![0-9])", re.IGNORECASE),
    re.compile(r"(?:^|[^0-9a-z.])(\d{1,5})$", re.IGNORECASE),
)


_WORKER = re.compile(r"(?P<worker>.+)\.\d{13,}\.pt\.trace\.json(?:\.gz|\.zst)?")
"""What torch.profiler's tensorboard_trace_handler calls a file: worker, time in nanoseconds."""

_PROCESS = re.compile(r".+_\d+|.*kineto_trace_\d+")
"""A worker without a name of its own: host_pid. A number in it is no rank."""


def rank_in_name(path: str) -> int | None:
    """The rank in the name of a file, as rank3, gpu3 or trace_3.json; None without one."""
    stem = _worker(path)
    patterns = _IN_NAME[:1] if _PROCESS.fullmatch(stem) and _is_worker(path) else _IN_NAME
    for pattern in patterns:
        matches = pattern.findall(stem)
        if matches:
            return int(matches[-1])
    return None


def _is_worker(path: str) -> bool:
    name = PurePath(path).name
    return _WORKER.fullmatch(name) is not None or "kineto_trace_" in name


def _worker(path: str) -> str:
    """What the name of a file says besides its time and its format."""
    name = PurePath(path).name
    match = _WORKER.fullmatch(name)
    if match is not None:
        return match["worker"]
    return re.sub(r"(?:\.(?:gz|zst|json|sqlite|nsys-rep|pt|trace))+$", "", name)


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
    for same in by_rank(reports).values():
        if len(same) > 1 and are_cycles(same):
            for number, report in enumerate(sorted(same, key=_start), start=1):
                report.cycle = number
            continue
        for earlier, report in pairwise(same):
            report.warnings.append(f"rank {report.rank} is also the rank of {earlier.path}")
    return sorted(reports, key=lambda r: (r.rank or 0, r.device, r.cycle or 0))


def by_rank(reports: Sequence[RankReport]) -> dict[tuple[int | None, int], list[RankReport]]:
    """The reports of each rank and device, in their order."""
    found: dict[tuple[int | None, int], list[RankReport]] = {}
    for report in reports:
        found.setdefault((report.rank, report.device), []).append(report)
    return found


def _start(report: RankReport) -> int:
    return report.whole.window.start


def are_cycles(reports: Sequence[RankReport]) -> bool:
    """Whether reports can be of one process at different times: none overlaps another."""
    if len({(r.world_size, r.gpu, r.source) for r in reports}) > 1 or reports[0].source == "nsys":
        # Nsight Systems counts time from the start of each recording.
        return False
    ordered = sorted((r.whole.window for r in reports), key=lambda w: w.start)
    return all(one.end <= following.start for one, following in pairwise(ordered))


def _rank_by_name(reports: list[RankReport], *, required: bool) -> list[RankReport]:
    """Ranks from the names of the files, or from their order where a name has none.

    Args:
        reports: the reports on all files.
        required: whether every name must have a rank.

    Raises:
        InputError: a name must have a rank, and has none.
    """
    processes: dict[tuple[object, ...], list[RankReport]] = {}
    for report in reports:
        processes.setdefault(_process_of(report), []).append(report)
    heads = _rank_processes([of[0] for of in processes.values()], required=required)
    for head, of in zip(heads, processes.values(), strict=True):
        for report in of:
            report.rank = head.rank
            report.warnings += [w for w in head.warnings if w not in report.warnings]
    return reports


def _process_of(report: RankReport) -> tuple[object, ...]:
    """What is the same for the GPUs of one process."""
    own = () if report.gpus > 1 else (report.device, id(report))
    return (report.path, report.process, *own)


def _rank_processes(reports: list[RankReport], *, required: bool) -> list[RankReport]:
    """As `_rank_by_name`, of one report for each process."""
    named = {r.path: rank_in_name(r.path) for r in reports}
    workers = {r.path: _worker(r.path) for r in reports}
    missing = [path for path, rank in named.items() if rank is None]
    if required and missing:
        raise InputError(
            f"--rank-from name: the name {missing[0]} contains no rank; rename it, as in rank3.json"
        )
    several = len(named) != len(reports)
    if not missing and not several and (required or _apart(reports, named)):
        return [replace(r, rank=named[r.path]) for r in reports]
    by_worker = not several and _apart(reports, workers)
    order = {worker: place for place, worker in enumerate(dict.fromkeys(workers.values()))}
    for position, report in enumerate(reports):
        report.rank = order[workers[report.path]] if by_worker else position
        if len(reports) > 1:
            report.warnings.append(
                "not every file states its rank: ranks follow the order of files and devices"
            )
    return reports


def _apart(reports: Sequence[RankReport], key: Mapping[str, int | str | None]) -> bool:
    """Whether files of one key are cycles of one process."""
    groups: dict[int | str | None, list[RankReport]] = {}
    for report in reports:
        groups.setdefault(key[report.path], []).append(report)
    return all(len(group) == 1 or are_cycles(group) for group in groups.values())
