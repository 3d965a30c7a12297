"""Reads a file, compressed or not, in blocks, within the limits of a plausible size."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

from isal import isal_zlib

from overlapkit.errors import InputError
from overlapkit.input_file import open_input

BLOCK = 1 << 20
"""Bytes of a block: small enough for caches, large enough that its overhead is negligible."""

MAX_RATIO = 500
"""Ratio beyond which a gzip file is a bomb: profiles are compressed to a tenth or a thirtieth."""

FREE_BYTES = 256 << 20
"""Expanded bytes that are read whatever the ratio, since that takes hardly any time."""

_DAMAGED: tuple[type[Exception], ...] = (isal_zlib.error,)  # type: ignore[assignment]
GZIP_MAGIC = b"\x1f\x8b"
SQLITE_MAGIC = b"SQLite format 3\0"


def check_readable(path: str) -> bytes:
    """The first bytes of a regular file.

    Raises:
        InputError: it is missing, empty, a folder, or cannot be read.
    """
    with open_input(path, "trace") as stream:
        try:
            start = stream.read(64)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not start:
        raise InputError(f"{path}: is empty; export the trace again")
    return start


class ByteSource:
    """The content of a file in blocks. A separate thread expands gzip.

    Attributes:
        cut: whether a compressed file ended before its content did; valid at the end.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.cut = False
        self._gzip = check_readable(path).startswith(GZIP_MAGIC)

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of at most `BLOCK` bytes.

        Raises:
            InputError: it cannot be read, its compression is damaged, or it expands too much.
        """
        return self._in_thread() if self._gzip else self._plain()

    def _plain(self) -> Iterator[bytes]:
        try:
            with Path(self.path).open("rb", buffering=0) as stream:
                while block := stream.read(BLOCK):
                    yield block
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None

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
                for block in self._expanded():
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

    def _expanded(self) -> Iterator[bytes]:
        read = expanded = 0
        try:
            with Path(self.path).open("rb") as stream:
                member = isal_zlib.decompressobj(31)
                rest = b""
                while True:
                    if not rest:
                        rest = stream.read(1 << 18)
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
                    block = member.decompress(rest, BLOCK)
                    rest = member.unused_data if member.eof else member.unconsumed_tail
                    expanded += len(block)
                    if expanded > FREE_BYTES and expanded > MAX_RATIO * read:
                        raise InputError(
                            f"{self.path}: expands to more than {MAX_RATIO} times its size; "
                            "if it is a trace, expand it first"
                        )
                    if block:
                        yield block
                self.cut = not member.eof
                if self.cut and not expanded:
                    raise InputError(f"{self.path}: damaged gzip data, or truncated at its start")
        except _DAMAGED as error:
            if not expanded:
                raise InputError(f"{self.path}: damaged gzip data: {error}") from None
            self.cut = True
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
