"""Reads one large file in several processes, while this one imports what analyses it.

Every process expands the entire file and cuts it at the same places, which costs little, but
decodes only its share of the chunks. If anything fails there, the file is read again here, so that
damaged files are handled in one place.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass

from overlapkit.errors import InputError
from overlapkit.input_file import open_input
from overlapkit.processes import Worker
from overlapkit.trace.read.byte_source import SQLITE_MAGIC
from overlapkit.trace.read.files.compression import GZIP_MAGIC, ZSTD_MAGIC
from overlapkit.trace.read.kineto_events import DigitsNeeded, read_events
from overlapkit.trace.read.recorded import Reading

LARGE = 24 << 20
"""Bytes of text from which processes pay off. The size of a compressed file counts ten times."""

MAX_PROCESSES = 4
"""More processes would not be faster, since each of them expands the file."""


@dataclass(frozen=True)
class Ahead:
    """Processes that are reading shares of one file."""

    workers: list[Worker[Reading]]

    def collect(self) -> Reading | None:
        """Everything that they have read; None where the file must be read here.

        Raises:
            DigitsNeeded: times have digits that were not kept.
        """
        complete: Reading | None = None
        alone = digits = False
        for worker in self.workers:
            try:
                share = worker.result()
            except DigitsNeeded:
                digits = True
            except Exception:  # whatever it is, reading here shows it
                alone = True
            else:
                if complete is None:
                    complete = share
                else:
                    complete.add(share)
        if digits:
            raise DigitsNeeded
        return None if alone else complete


def read_ahead(path: str, *, exact: bool = False) -> Ahead | None:
    """Begin to read a large JSON trace in processes; None where that does not pay off or work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if cores < 2 or not hasattr(os, "fork") or not _is_large(path):
        return None
    shares = min(cores, MAX_PROCESSES)
    try:
        return Ahead([Worker(_read_share, path, exact, (n, shares)) for n in range(shares)])
    except OSError:
        return None


def _read_share(path: str, exact: bool, share: tuple[int, int]) -> Reading:
    # Millions of short-lived objects, none in a cycle.
    gc.disable()
    return read_events(path, exact=exact, share=share)


def _is_large(path: str) -> bool:
    try:
        with open_input(path, "trace") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(16)
    except (OSError, InputError):
        return False
    if start.startswith(SQLITE_MAGIC):
        return False
    return size * (10 if start.startswith((GZIP_MAGIC, ZSTD_MAGIC)) else 1) >= LARGE
