"""Opens a file that a user named: without waiting for it, and with one line for what is wrong."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from overlapkit.errors import InputError

_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""What a shell passes for ``<(command)``, and standard input: a pipe that has a writer."""


def open_input(name: str, what: str, *, pipes: bool = False) -> BinaryIO:
    """A file, opened for reading.

    A FIFO is refused: without a writer, opening it would wait forever. Nothing else waits either,
    such as a file in /proc that has nothing to read yet: reading it returns None.

    Args:
        name: the file, as the user named it.
        what: what it should be, for messages: "run configuration".
        pipes: also take ``/dev/stdin`` and the ``/dev/fd/N`` of a shell's ``<(command)``. Reading
            these waits for their writer.

    Raises:
        InputError: it is missing, a folder, not a regular file or not readable.
    """
    if not name:
        raise InputError(f"a file is missing: its name is empty; name the {what}")
    piped = pipes and name.startswith(_PIPES)
    try:
        # Before it is opened: opening some devices does something.
        _check_kind(name, os.stat(name).st_mode, what, piped)  # noqa: PTH116 - not a Path yet
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if piped else os.O_NONBLOCK)
        file = os.fdopen(os.open(name, flags), "rb")
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        # A NUL, or a character that no file name can contain.
        raise InputError(f"{name}: cannot be read: {error}") from None
    try:
        # What was opened may be another file than the one that was looked at.
        _check_kind(name, os.fstat(file.fileno()).st_mode, what, piped)
    except InputError:
        file.close()
        raise
    return file


def read_input(name: str, what: str, *, most: int, pipes: bool = False) -> bytes:
    """The content of a file.

    Args:
        name: the file, as the user named it.
        what: what it should be, for messages.
        most: bytes of the largest file that is read.
        pipes: as in `open_input`.

    Raises:
        InputError: as `open_input`; or the file is larger, or cannot be read.
    """
    with open_input(name, what, pipes=pipes) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    if content is None:
        raise InputError(f"{name}: cannot be read: it has no content yet")
    if len(content) > most:
        size = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
        raise InputError(f"{name}: is larger than {size}; name the {what}")
    return content


def is_file(name: str) -> bool:
    """Whether a regular file of this name exists; false where no file can have the name."""
    # Path.is_file raises for a name that is too long.
    return os.path.isfile(name)  # noqa: PTH113


def is_null_device(name: str) -> bool:
    """Whether this is ``/dev/null``, by any name; false where no file can have the name."""
    try:
        return os.path.samefile(name, os.devnull)  # noqa: PTH121
    except (OSError, ValueError):
        return False


def _check_kind(name: str, mode: int, what: str, piped: bool) -> None:
    if stat.S_ISDIR(mode):
        raise InputError(f"{name}: is a folder; name the {what} in it")
    if not stat.S_ISREG(mode) and not piped:
        raise InputError(f"{name}: is not a regular file; name a file that contains the {what}")
