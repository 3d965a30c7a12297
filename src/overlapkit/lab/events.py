"""What ranks tell while they run: one JSON line each, in a file per rank of the work folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.errors import InputError

FOLDER_VARIABLE = "OVERLAPKIT_LAB_FOLDER"
"""Names the work folder to every rank, whatever started it."""

JOINED = "joined"
"""The first event of every rank, with its process id; `lab.link.rank_side.join` sends it."""
FAILED = "failed"
"""Sent when an exception ends a rank, before its connections close and others fail of that."""

_CHUNK = 1 << 20


class Event(msgspec.Struct, frozen=True):
    """One thing that a rank told.

    Attributes:
        rank: the rank in the job.
        time: when it was told, in seconds since the epoch, by the rank's clock.
        data: what `emit` was given.
    """

    rank: int
    time: float
    data: dict[str, Any]


def events_file(folder: Path, rank: int) -> Path:
    """Where a rank's events stand."""
    return folder / f"events.rank{rank}.jsonl"


def emit(event: dict[str, Any]) -> None:
    """In a rank: tell the lab something that JSON can hold.

    Raises:
        InputError: the process is no rank of a lab: no work folder or no rank in its environment.
    """
    folder, rank = os.environ.get(FOLDER_VARIABLE), os.environ.get("RANK", "")
    if not folder:
        raise InputError(f"{FOLDER_VARIABLE} is not set: name the work folder of the ranks in it")
    if not rank.isdigit():
        raise InputError(f"RANK={rank!r} is no rank: start the module under torchrun")
    line = msgspec.json.encode(Event(int(rank), time.time(), event)) + b"\n"
    # One write of a whole line, appended: threads of a rank do not mix their lines.
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
