"""Writes files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from isal import igzip

from overlapkit.errors import InputError


@contextmanager
def writing(target: str, option: str) -> Iterator[IO[bytes]]:
    """A stream whose content becomes `target` when the block ends well; gzip for ``.gz``.

    Raises:
        InputError: it cannot be written there.
    """
    folder = Path(target).absolute().parent
    aside = None
    try:
        descriptor, aside = tempfile.mkstemp(prefix=".overlapkit-", dir=folder)
        with os.fdopen(descriptor, "wb") as plain:
            if target.endswith(".gz"):
                packed = igzip.open(plain, "wb", compresslevel=2)  # type: ignore[no-untyped-call]
                with cast("IO[bytes]", packed) as stream:
                    yield stream
            else:
                yield plain
        # A temporary file is private; what a user asks for has the usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        Path(aside).chmod(0o666 & ~mask)
        Path(aside).replace(target)
        aside = None
    except OSError as error:
        raise InputError(f"{option} {target}: cannot be written: {error.strerror}") from None
    finally:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)


def write_whole(target: str, text: str) -> None:
    """Write a page whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    with writing(target, "--html") as stream:
        stream.write(text.encode("utf-8", "replace"))
