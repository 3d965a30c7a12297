"""Reads a trace in blocks: from a file or an archive, compressed or not, as UTF-8."""

from __future__ import annotations

import queue
import threading
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Iterator
from typing import BinaryIO

from overlapkit.errors import InputError
from overlapkit.trace.read.files.archives import opened
from overlapkit.trace.read.files.compression import (
    BLOCK,
    GZIP_MAGIC,
    ZSTD_MAGIC,
    GzipBlocks,
    ZstdBlocks,
)

SQLITE_MAGIC = b"SQLite format 3\0"

_UTF16 = {
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
    b"{\0": "utf-16-le",
    b"[\0": "utf-16-le",
    b"\0{": "utf-16-be",
    b"\0[": "utf-16-be",
}
"""How JSON in UTF-16 begins, as Windows writes it."""


def check_readable(path: str) -> bytes:
    """The first bytes of a file, or of a trace in an archive.

    Raises:
        InputError: it is missing, empty, a folder, or cannot be read.
    """
    with opened(path) as stream:
        try:
            start = stream.read(64)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not start:
        raise InputError(f"{path}: is empty; export the trace again")
    return start


class ByteSource:
    """The content of a trace in blocks. A separate thread expands what is compressed.

    Attributes:
        cut: whether a compressed file ended before its content did; valid at the end.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.cut = False
        start = check_readable(path)
        self._zstd = start.startswith(ZSTD_MAGIC)
        self._compressed = self._zstd or start.startswith(GZIP_MAGIC)

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of at most `BLOCK` bytes.

        Raises:
            InputError: it cannot be read, its compression is damaged, or it expands too much.
        """
        blocks = self._in_thread() if self._compressed else self._content()
        return _as_utf8(blocks)

    def _content(self) -> Iterator[bytes]:
        try:
            with opened(self.path) as stream:
                yield from self._expanded(stream) if self._compressed else _plain(stream)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _expanded(self, stream: BinaryIO) -> Iterator[bytes]:
        blocks = (ZstdBlocks if self._zstd else GzipBlocks)(self.path, stream)
        yield from blocks
        self.cut = blocks.cut

    def _in_thread(self) -> Iterator[bytes]:
        # Expansion releases the interpreter's lock, so it runs while blocks are decoded.
        blocks: queue.Queue[bytes | InputError | None] = queue.Queue(maxsize=2)
        stop = threading.Event()

        def put(item: bytes | InputError | None) -> bool:
            while not stop.is_set():
                try:
                    blocks.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for block in self._content():
                    if not put(block):
                        return
                put(None)
            except InputError as error:
                put(error)
            except MemoryError:
                put(InputError(f"{self.path}: not enough memory to read it"))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := blocks.get()) is not None:
                if isinstance(item, InputError):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


def _plain(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        yield block


def _as_utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    first = next(blocks, b"")
    encoding = next((e for start, e in _UTF16.items() if first.startswith(start)), None)
    if encoding is None:
        yield first
        yield from blocks
        return
    decoder = getincrementaldecoder(encoding)(errors="replace")
    yield decoder.decode(first).encode(errors="replace")
    for block in blocks:
        yield decoder.decode(block).encode(errors="replace")
    yield decoder.decode(b"", final=True).encode(errors="replace")
