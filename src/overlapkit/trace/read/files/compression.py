"""Expands compressed bytes in blocks, within the limits of a plausible size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from isal import isal_zlib

from overlapkit.errors import InputError

BLOCK = 1 << 20
"""Bytes of a block: small enough for caches, large enough that its overhead is negligible."""

MAX_RATIO = 500
"""Ratio beyond which compressed data is a bomb: profiles shrink to a tenth or a thirtieth."""

FREE_BYTES = 256 << 20
"""Expanded bytes that are read whatever the ratio, since that takes hardly any time."""

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_DAMAGED: tuple[type[Exception], ...] = (isal_zlib.error,)  # type: ignore[assignment]


def is_gzip(start: bytes) -> bool:
    """Whether bytes begin as gzip does."""
    return start.startswith(GZIP_MAGIC)


class GzipBlocks:
    """The expanded content of a gzip stream, of one or several members.

    Args:
        path: the file, for messages.
        stream: the compressed bytes.
        most: bytes of the largest block.

    Attributes:
        cut: whether the data ended before its content did; valid at the end.
    """

    def __init__(self, path: str, stream: BinaryIO, *, most: int = BLOCK) -> None:
        self.path, self.cut = path, False
        self._stream, self._most = stream, most

    def __iter__(self) -> Iterator[bytes]:
        """Blocks.

        Raises:
            InputError: nothing can be expanded, or it expands too much.
        """
        read = expanded = 0
        try:
            member = isal_zlib.decompressobj(31)
            rest = b""
            while True:
                if not rest:
                    rest = self._stream.read(1 << 18)
                    read += len(rest)
                    if not rest:
                        break
                if member.eof:
                    # Another member follows, or padding.
                    if not rest.strip(b"\0"):
                        rest = b""
                        continue
                    if not rest.startswith(GZIP_MAGIC[: len(rest)]):
                        break
                    member = isal_zlib.decompressobj(31)
                block = member.decompress(rest, self._most)
                rest = member.unused_data if member.eof else member.unconsumed_tail
                expanded += len(block)
                check_growth(self.path, expanded, read)
                if block:
                    yield block
            self.cut = not member.eof
            if self.cut and not expanded:
                raise InputError(f"{self.path}: damaged gzip data, or truncated at its start")
        except _DAMAGED as error:
            if not expanded:
                raise InputError(f"{self.path}: damaged gzip data: {error}") from None
            self.cut = True


class ZstdBlocks:
    """The expanded content of a file that Zstandard compressed, by the program ``zstd``.

    Attributes:
        cut: whether the data is damaged or ended before its content did; valid at the end.
    """

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self.path, self.cut = path, False
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        """Blocks.

        Raises:
            InputError: there is no such program here, or nothing can be expanded.
        """
        import shutil
        import subprocess

        program = shutil.which("zstd")
        try:
            file = self._stream.fileno()
        except OSError:
            raise InputError(
                f"{self.path}: is compressed with zstd inside an archive; unpack it first"
            ) from None
        if program is None:
            raise InputError(
                f"{self.path}: is compressed with zstd, and the program zstd is not installed "
                "here; install it, or expand the file where it is: zstd -d FILE"
            )
        packed = os.fstat(file).st_size
        expanded = 0
        # It ends when its output is closed: nothing is left of it, however this process ends.
        with subprocess.Popen(
            [program, "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                output = process.stdout
                while output is not None and (block := output.read(BLOCK)):
                    expanded += len(block)
                    check_growth(self.path, expanded, packed)
                    yield block
            finally:
                if process.stdout is not None:
                    process.stdout.close()
        self.cut = process.returncode != 0
        if self.cut and not expanded:
            raise InputError(f"{self.path}: damaged zstd data, or truncated at its start")


def check_growth(path: str, expanded: int, packed: int) -> None:
    """Refuse data that expands too much.

    Raises:
        InputError: as said.
    """
    if expanded > FREE_BYTES and expanded > MAX_RATIO * packed:
        raise InputError(
            f"{path}: expands to more than {MAX_RATIO} times its size; "
            "if it is a trace, expand it first"
        )
