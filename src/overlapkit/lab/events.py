"""Events that ranks report while they run: JSON lines, in one file for each rank."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.errors import InputError

FOLDER_VARIABLE = "OVERLAPKIT_LAB_FOLDER"
"""Environment variable with the path of the work folder, set in every rank."""

JOINED = "joined"
"""The first event of every rank, with its process id; sent by `lab.link.rank_side.join`."""
FAILED = "failed"
"""Sent when an exception ends a rank, before its connections close and other ranks fail; with the
fields of `describe`."""

_CHUNK = 1 << 20


_OF_CORE = "megatron.core"
_LONGEST_MESSAGE = 1000


def describe(error: BaseException) -> dict[str, Any]:
    """What an exception says, for an event.

    Returns:
        ``type``: its class; ``message``: its first line that is not empty; ``place``: module and
        line of the innermost frame in Megatron-Core, such as ``megatron.core.utils:12``, None
        where none is; ``error``: type and whole message.
    """
    lines = (line.strip() for line in str(error).splitlines())
    place = None
    frame = error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        if module == _OF_CORE or module.startswith(f"{_OF_CORE}."):
            place = f"{module}:{frame.tb_lineno}"
        frame = frame.tb_next
    kind = type(error).__name__
    return {
        "error": f"{kind}: {error}"[:_LONGEST_MESSAGE],
        "type": kind,
        "message": next(filter(None, lines), "")[:_LONGEST_MESSAGE],
        "place": place,
    }


class Event(msgspec.Struct, frozen=True):
    """One report of a rank.

    Attributes:
        rank: the rank in the job.
        time: when it was sent, in seconds since the epoch, by the rank's clock.
        data: what `emit` was called with.
    """

    rank: int
    time: float
    data: dict[str, Any]


def events_file(folder: Path, rank: int) -> Path:
    """The file with a rank's events."""
    return folder / f"events.rank{rank}.jsonl"


def emit(event: dict[str, Any]) -> None:
    """In a rank: report an event, which can be anything that JSON can represent.

    Raises:
        InputError: the process is not a rank of a lab: its environment has no work folder or no
            rank.
    """
    folder, rank = os.environ.get(FOLDER_VARIABLE), os.environ.get("RANK", "")
    if not folder:
        raise InputError(f"{FOLDER_VARIABLE} is not set: set it to the work folder of the ranks")
    if not rank.isdigit():
        raise InputError(f"RANK={rank!r} is not a rank: start the module under torchrun")
    line = msgspec.json.encode(Event(int(rank), time.time(), event)) + b"\n"
    # One write per line, appended: lines of a rank's threads are not interleaved.
    file = os.open(
        events_file(Path(folder), int(rank)), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
    )
    try:
        os.write(file, line)
    finally:
        os.close(file)


class Tail:
    """Reads the events of a work folder as they are written."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._files = [events_file(folder, rank) for rank in range(ranks)]
        self._read = [0] * ranks
        self._rest = [b""] * ranks

    def new(self) -> Iterator[Event]:
        """Events since the last call, rank by rank, each rank's in its own order."""
        for rank, path in enumerate(self._files):
            try:
                with path.open("rb") as file:
                    file.seek(self._read[rank])
                    while chunk := file.read(_CHUNK):
                        self._read[rank] += len(chunk)
                        *lines, self._rest[rank] = (self._rest[rank] + chunk).split(b"\n")
                        for line in lines:
                            yield msgspec.json.decode(line, type=Event)
            except FileNotFoundError:
                continue
