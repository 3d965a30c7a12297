"""Determines which rank failed or hangs, and shows its last lines."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overlapkit.errors import InputError
from overlapkit.lab.events import Event
from overlapkit.lab.launch.agent import FAILURES_FILE
from overlapkit.lab.launch.supervise import AGENT_LOG
from overlapkit.lab.link import kernel
from overlapkit.lab.link.rank_side import STACK_SIGNAL

_LINES = 20
_TAIL_BYTES = 64 * 1024
_FRAMES = 4
_ANSWER_S = 2.0
_SAME_TIME_S = 1.0

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')


_WARNING = re.compile(r"^\S+:\d+: \w*Warning: |^\[?[WI]\d{4}[ \d]")
"""Begins a warning of Python, and a warning or remark of torch's C++ or Python log."""


class RankLog(Exception):
    """The last lines of a rank's log: the cause of an error, which --debug shows."""


@dataclass(frozen=True)
class Raised:
    """The exception that ended a rank, as the rank reported it.

    Attributes:
        time: when, in seconds since the epoch.
        error: its type and message.
        place: module and line in Megatron-Core; empty where it was not raised there.
        variant: what the rank trained; empty before the first.
    """

    time: float
    error: str = ""
    place: str = ""
    variant: str = ""

    @classmethod
    def of(cls, event: Event, variant: str = "") -> Raised:
        """What an event of kind `FAILED` says."""
        said, kind = str(event.data.get("error", "")), event.data.get("type")
        if kind:
            # The first line alone: libraries append the settings of whole groups.
            said = f"{kind}: {event.data.get('message', '')}"
        return cls(event.time, said, str(event.data.get("place") or ""), variant)

    @property
    def sentence(self) -> str:
        """What follows the rank: the variant, the error and its place, in one line."""
        during = f" in variant {self.variant}" if self.variant else ""
        place = f" ({self.place})" if self.place else ""
        return f"failed{during}: {' '.join(self.error.split())}{place}"


class LabError(InputError):
    """The ranks did not finish.

    Attributes:
        summary: what happened, in one sentence.
        lines: the last lines of the most relevant log. Where the summary does not name the cause,
            they follow it in the message, on the same line and without warnings.
    """

    def __init__(
        self, summary: str, log: Path | None, end: int | None = None, *, complete: bool = False
    ) -> None:
        self.summary = summary
        self.lines = last_lines(log, end) if log is not None else []
        shown = "" if complete else " | ".join(_without_warnings(self.lines))
        super().__init__(f"{summary}; last lines: {shown}" if shown else summary)
        if self.lines:
            self.__cause__ = RankLog("\n".join(self.lines))


def _without_warnings(lines: Iterable[str]) -> Iterator[str]:
    """The lines that say something, without the warnings of libraries."""
    source_follows = False
    for line in lines:
        # Python shows the line of source that warned below the warning, indented.
        is_source = source_follows and line.startswith("  ")
        source_follows = _WARNING.match(line) is not None
        if line.strip() and not source_follows and not is_source:
            yield line.strip()


def last_lines(log: Path, end: int | None = None) -> list[str]:
    """The last lines of a log of any size, or of its first `end` bytes; none if it is missing."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END) if end is None else end
            start = file.seek(max(0, end - _TAIL_BYTES))
            text = file.read(end - start).decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-_LINES:]


def rank_log(folder: Path, rank: int, stream: str = "stderr") -> Path | None:
    """The log of a rank's standard error or output; None if the rank never started."""
    return next(iter(folder.glob(f"logs/*/attempt_0/{rank}/{stream}.log")), None)


def failed(folder: Path, status: int | None, raised: Mapping[int, Raised]) -> LabError:
    """The error for ranks that failed under torchrun.

    Args:
        folder: the work folder.
        status: torchrun's own exit status.
        raised: rank to the exception that ended it.
    """
    try:
        codes = msgspec.json.decode((folder / FAILURES_FILE).read_bytes(), type=dict[int, int])
    except FileNotFoundError:
        return LabError(f"torchrun ended with exit status {status}", folder / AGENT_LOG)
    rank = min(codes, key=lambda rank: _lateness(codes[rank], raised.get(rank)))
    known = raised.get(rank)
    if known is not None and known.error and codes[rank] == 1:
        return LabError(f"rank {rank} {known.sentence}", rank_log(folder, rank), complete=True)
    others = [
        f"rank {other} {_end(code)} after it"
        for other, code in codes.items()
        # torchrun sends SIGTERM to the remaining ranks.
        if other != rank and code != -signal.SIGTERM
    ]
    summary = ", ".join([f"rank {rank} {_end(codes[rank])}", *others])
    return LabError(summary, rank_log(folder, rank))


def _lateness(code: int, raised: Raised | None) -> tuple[int, float]:
    """Sorts the rank that failed first before those that failed because of it.

    A rank that was killed, or that exited with a status of its own, did not fail because of another
    one. An exception can follow from a lost connection, and is then later than its cause. Libraries
    abort when a peer has ended, and torchrun sends SIGTERM to the remaining ranks.
    """
    if code in (-signal.SIGABRT, -signal.SIGTERM):
        return 2, 0.0
    return (0, 0.0) if raised is None else (1, raised.time)


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def hanging(
    what: str,
    folder: Path,
    *,
    ranks: int,
    supervisor: int,
    pids: Mapping[int, int],
    last_events: Mapping[int, float],
) -> LabError:
    """The error for ranks that do not end, with the place in the program where each of them is.

    Args:
        what: what is wrong.
        folder: the work folder.
        ranks: their number.
        supervisor: process id of the supervisor.
        pids: rank to its process id in its own namespace, once it has joined.
        last_events: rank to the time of its last event, in seconds since the epoch.
    """
    if not last_events:
        return LabError(f"{what}; none has started", folder / AGENT_LOG)
    logs = {rank: rank_log(folder, rank) for rank in range(ranks)}
    written = {rank: log.stat().st_size for rank, log in logs.items() if log is not None}
    places = _places(logs, written, supervisor, pids)
    now = time.time()
    oldest = min(last_events.values())
    # A rank that never joined has been silent for longest.
    silent = [rank for rank in range(ranks) if rank not in last_events] or sorted(
        rank for rank, last in last_events.items() if last - oldest < _SAME_TIME_S
    )
    found: dict[tuple[str, str], list[int]] = {}
    for rank in [*silent, *(rank for rank in sorted(last_events) if rank not in silent)]:
        if rank not in last_events:
            key = "", "not started"
        elif rank in silent:
            key = f", silent for {now - last_events[rank]:.0f} s,", places[rank]
        else:
            key = "", places[rank]
        found.setdefault(key, []).append(rank)
    shown = "; ".join(_of_ranks(at, since, place) for (since, place), at in found.items())
    return LabError(f"{what}: {shown}", logs[silent[0]], written.get(silent[0]))


def _of_ranks(ranks: list[int], since: str, place: str) -> str:
    """Where ranks are that are in the same place, such as "ranks 0, 1 have ended"."""
    if len(ranks) == 1:
        verb = f"has {place}" if place == "not started" else place
        return f"rank {ranks[0]}{since} {verb}"
    plural = place.replace("is ", "are ", 1).replace("does not", "do not", 1)
    plural = f"have {plural}" if place == "not started" else plural.replace("has ", "have ", 1)
    return f"ranks {', '.join(map(str, ranks))}{since} {plural}"


def _places(
    logs: Mapping[int, Path | None],
    written: Mapping[int, int],
    supervisor: int,
    pids: Mapping[int, int],
) -> dict[int, str]:
    """Where each rank is in its program, as it writes when it receives STACK_SIGNAL.

    Args:
        logs: rank to the log of its standard error.
        written: rank to the size of that log before the signal.
        supervisor: process id of the supervisor.
        pids: rank to its process id in its own namespace.
    """
    hosts = {kernel.id_in_namespace(pid): pid for pid in kernel.descendants(supervisor)}
    for rank in pids:
        if pids[rank] in hosts:
            with suppress(ProcessLookupError):
                os.kill(hosts[pids[rank]], STACK_SIGNAL)
    deadline = time.monotonic() + _ANSWER_S
    places: dict[int, str] = {}
    while len(places) < len(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
        for rank, size in written.items():
            log = logs[rank]
            if rank not in places and log is not None and (place := _place(log, size)):
                places[rank] = place
    for rank in logs:
        host = hosts.get(pids[rank]) if rank in pids else None
        state = None if host is None else kernel.state(host)
        places.setdefault(rank, f"is {state} and does not respond" if state else "has ended")
    return places


def _place(log: Path, start: int) -> str | None:
    """The innermost calls of the thread that faulthandler writes last; None if still incomplete."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read(_TAIL_BYTES).decode(errors="replace")
    _, found, current = text.partition("Current thread ")
    frames = [match for line in current.splitlines() if (match := _FRAME.match(line))]
    if not found or not frames or not current.endswith("\n"):
        return None
    calls = [
        f"{frame['function']} ({Path(frame['file']).name}:{frame['line']})"
        for frame in frames[:_FRAMES]
    ]
    return f"is in {' < '.join(calls)}"
