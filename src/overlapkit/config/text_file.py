"""Reads a file that a user named as text, bounded."""

from __future__ import annotations

import os
from pathlib import Path

from overlapkit.errors import InputError

MAX_BYTES = 4 * 1024 * 1024
"""Larger than any run configuration by two orders of magnitude."""

_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""What a shell hands over for ``<(command)``: a pipe, but one that somebody writes into."""


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name; never where no file can have the name."""
    # Path.exists raises for a name that is too long, or holds a NUL.
    return os.path.exists(name)  # noqa: PTH110


def read_text(name: str, *, what: str, most: int = MAX_BYTES) -> str:
    """The text in a file.

    Args:
        name: the file, as the user named it.
        what: what it should be, for the messages: "run configuration".

    Raises:
        InputError: it is missing, no file, not readable, too large or not UTF-8.
    """
    if not name:
        raise InputError(f"a file is missing: its name is empty; name the {what}")
    path = Path(name)
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a folder; name the {what} in it")
        if path.exists() and not path.is_file() and not name.startswith(_PIPES):
            raise InputError(f"{name}: is not a regular file")
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        # A NUL, which no path may hold.
        raise InputError(f"{name}: cannot be read: {error}") from None
    if len(raw) > most:
        size = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
        raise InputError(f"{name}: larger than {size}, not a {what}")
    if b"\0" in raw:
        raise InputError(f"{name}: is a binary file, not a {what}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{line}: is not UTF-8 text") from None
