"""Reads a text file that a user named, up to a limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from overlapkit.errors import InputError
from overlapkit.input_file import is_null_device, read_input

MAX_BYTES = 4 * 1024 * 1024
"""Larger than any run configuration by two orders of magnitude."""


_PROPOSED: ContextVar[tuple[str, str] | None] = ContextVar("_PROPOSED", default=None)


@contextmanager
def proposed(name: str, text: str) -> Iterator[None]:
    """Inside the block a file of this name has this text for `read_text`.

    A configuration is judged so before it is written, by the readers that read it from its file.
    """
    token = _PROPOSED.set((name, text))
    try:
        yield
    finally:
        _PROPOSED.reset(token)


def exists(name: str) -> bool:
    """Whether a file or folder of this name exists; false where no file can have the name."""
    # Path.exists raises for a name that is too long or contains a NUL.
    return os.path.exists(name)  # noqa: PTH110


def read_text(name: str, *, what: str, most: int = MAX_BYTES, nothing: bool = False) -> str:
    """The text in a file.

    Args:
        name: the file, as the user named it.
        what: what it should be, for the messages: "run configuration".
        nothing: also take ``/dev/null``, which is empty.

    Raises:
        InputError: as `read_input`; or the file is not UTF-8.
    """
    if nothing and is_null_device(name):
        return ""
    instead = _PROPOSED.get()
    if instead is not None and instead[0] == name:
        return instead[1]
    return decoded(name, read_input(name, what, most=most, pipes=True), what=what)


def decoded(name: str, raw: bytes, *, what: str) -> str:
    """The text in the bytes of a file, without a byte order mark.

    Raises:
        InputError: it is not UTF-8 text.
    """
    if b"\0" in raw:
        raise InputError(f"{name}: is a binary file; name the {what}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{line}: is not UTF-8 text") from None
