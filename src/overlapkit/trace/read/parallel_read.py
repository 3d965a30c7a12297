"""Reads one large file in several processes, while this one imports what analyses it.

Every process expands the whole file and cuts it at the same places, which costs little, but decodes
only its share of the chunks. Whatever goes wrong there, the file is read again here, so that only
one place decides what a damaged file means.
"""

from __future__ import annotations

import gc
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

from overlapkit.errors import InputError
from overlapkit.trace.read.byte_source import GZIP_MAGIC, SQLITE_MAGIC
from overlapkit.trace.read.json_events import NotInShares
from overlapkit.trace.read.kineto_events import DigitsNeeded, read_events
from overlapkit.trace.read.recorded import Reading

LARGE = 96 << 20
"""Bytes of text from which processes pay off; compressed files are counted ten times."""

MAX_PROCESSES = 4
"""More would wait for the expansion of the file, which each does for itself."""


@dataclass(frozen=True)
class Ahead:
    """Processes that are reading a file: process id and the end of its pipe that is read."""

    children: list[tuple[int, int]]

    def collect(self) -> Reading | None:
        """What they have read; None where the file must be read here.

        Raises:
            DigitsNeeded: times have digits that were not kept.
        """
        results = [_result(process, pipe) for process, pipe in self.children]
        if "digits" in results:
            raise DigitsNeeded
        whole: Reading | None = None
        for result in results:
            if not isinstance(result, Reading):
                return None
            if whole is None:
                whole = result
            else:
                whole.add(result)
        return whole


def read_ahead(path: str, *, exact: bool = False) -> Ahead | None:
    """Begin to read a large JSON trace in processes; None where that does not pay or cannot be."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if cores < 2 or not hasattr(os, "fork") or not _is_large(path):
        return None
    shares = min(cores, MAX_PROCESSES)
    children = []
    for index in range(shares):
        ours, theirs = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(ours)
            _child(path, exact, (index, shares), theirs)
        os.close(theirs)
        children.append((process, ours))
    return Ahead(children)


def _is_large(path: str) -> bool:
    try:
        file = Path(path)
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(16) if file.is_file() else b""
    except (OSError, ValueError):
        return False
    if start.startswith(SQLITE_MAGIC):
        return False
    return size * (10 if start.startswith(GZIP_MAGIC) else 1) >= LARGE


def _child(path: str, exact: bool, share: tuple[int, int], pipe: int) -> None:
    """Read one share, write it to the pipe, and end this process."""
    try:
        gc.disable()
        result: Reading | str
        try:
            result = read_events(path, exact=exact, share=share)
        except DigitsNeeded:
            result = "digits"
        except (InputError, NotInShares):
            result = "alone"
        with os.fdopen(pipe, "wb") as stream:
            pickle.dump(result, stream, protocol=pickle.HIGHEST_PROTOCOL)
    finally:
        # Whatever happened: nothing of the parent's may run here, and it reads the file itself.
        os._exit(0)


def _result(process: int, pipe: int) -> object:
    try:
        with os.fdopen(pipe, "rb") as stream:
            return pickle.load(stream)
    except (EOFError, pickle.UnpicklingError, MemoryError):
        return "alone"
    finally:
        os.waitpid(process, 0)
