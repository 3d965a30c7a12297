"""Standard output and standard error, whatever they are connected to."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Sized
from contextlib import suppress
from typing import Any, TextIO, cast

from overlapkit.errors import InputError


def open_standard_streams() -> None:
    """Make the standard streams of this process safe to write to.

    - A reader that stopped reading (``| head``) changes nothing: further text is discarded.
    - Standard output that cannot be written otherwise (closed, on a full disk) raises an
      `InputError` at the first write, and discards what follows.
    - Standard error that cannot be written is discarded.
    - A file name that the encoding cannot represent is shown with escapes.
    """
    # The next file to be opened would take the place of a stream that is closed. Opened for
    # reading, standard output still fails when it is written to.
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout, required=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr, required=False)
    for stream in (sys.stdout, sys.stderr):
        # Also of one that somebody has put in its place, as tests do.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stream(descriptor: int, old: TextIO | None, *, required: bool) -> TextIO:
    buffered = io.BufferedWriter(_Raw(descriptor, required=required))
    return io.TextIOWrapper(
        buffered,
        encoding="utf-8" if old is None else old.encoding,
        line_buffering=not required or os.isatty(descriptor),
    )


class _Raw(io.FileIO):
    """A descriptor that stays open. After a failure what is written is discarded."""

    def __init__(self, descriptor: int, *, required: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.required = required

    def write(self, data: Any) -> int:
        try:
            while (written := cast("int | None", super().write(data))) is None:
                # Somebody has made the pipe non-blocking.
                select.select([], [self.fileno()], [])
            return written
        except OSError as error:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.required and not isinstance(error, BrokenPipeError):
                raise InputError(f"standard output: cannot be written: {error.strerror}") from None
            return len(cast("Sized", data))
