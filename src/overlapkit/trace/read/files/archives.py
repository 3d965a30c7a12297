"""Traces in archives. JSON is read where it is; a database is copied to a temporary file.

A trace in an archive is named as if the archive were a folder: ``run.zip/rank0.json``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from overlapkit.errors import InputError
from overlapkit.input_file import is_file, open_input
from overlapkit.trace.read.files.compression import (
    GzipBlocks,
    check_growth,
    is_gzip,
)

if TYPE_CHECKING:
    import tarfile

MAX_MEMBERS = 100_000
"""Files in an archive beyond which it is refused."""

_ZIP_MAGIC = b"PK\x03\x04"
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_AT = 257
_BLOCK = 512
_COPIED = 1 << 20


def locate(path: str) -> tuple[str, str | None]:
    """The file that has the bytes, and the name of the trace in it; None for a plain file."""
    if "/" not in path or is_file(path):
        return path, None
    end = len(path)
    while (end := path.rfind("/", 1, end)) > 0:
        if is_file(path[:end]):
            return path[:end], path[end + 1 :]
        # Parents of a folder that exists are folders.
        if os.path.isdir(path[:end]):  # noqa: PTH112 - Path.is_dir raises for a name too long
            break
    return path, None


def is_archive(path: str) -> bool:
    """Whether a file is a zip or tar archive, by its content.

    Raises:
        InputError: it cannot be read.
    """
    with open_input(path, "trace") as file, _understood(path):
        return _kind(file, path) is not None


def members(path: str) -> list[str]:
    """The names of the files in an archive, in its order.

    Raises:
        InputError: it is damaged, expands to an implausible size, or has too many files.
    """
    names: dict[str, None] = {}
    with open_input(path, "trace") as file, _understood(path):
        if _kind(file, path) == "zip":
            import zipfile

            with zipfile.ZipFile(file) as archive:
                found = (info.filename for info in archive.infolist() if not info.is_dir())
                for name in found:
                    names[name] = None
        else:
            with _tar(file, path) as tar:
                for info in tar:
                    if info.isfile():
                        names[info.name] = None
                    if len(names) > MAX_MEMBERS:
                        break
    if len(names) > MAX_MEMBERS:
        raise InputError(f"{path}: contains more than {MAX_MEMBERS:,} files; unpack the traces")
    return list(names)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, or of a trace in an archive.

    Raises:
        InputError: there is no such file or trace.
    """
    place, member = locate(path)
    with open_input(place, "trace") as file:
        if member is None:
            yield file
            return
        if _kind(file, place) is None:
            raise InputError(f"{path}: {place} is a file, and no archive")
        with _member(file, place, member) as stream:
            yield cast(BinaryIO, stream)


@contextmanager
def unpacked(path: str, room: str | None = None) -> Iterator[str]:
    """A file with the bytes of one in an archive, removed at the end; the same path for any other.

    Args:
        path: the file.
        room: a temporary folder for it; by default one of its own.

    Raises:
        InputError: as `opened`; or there is no room for it.
    """
    member = locate(path)[1]
    if member is None:
        yield path
        return
    # Imported here: hardly any trace is in an archive.
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="overlapkit-", dir=room) as folder:
        copy = os.path.join(folder, "unpacked" + os.path.splitext(member)[1])  # noqa: PTH118, PTH122
        with opened(path) as stream:
            try:
                with open(copy, "wb") as file:  # noqa: PTH123
                    shutil.copyfileobj(stream, file, _COPIED)
            except OSError as error:
                raise InputError(f"{path}: cannot be unpacked: {error.strerror}") from None
        try:
            yield copy
        except InputError as error:
            raise InputError(str(error).replace(copy, path)) from None


def unpack_command(path: str) -> str:
    """The command that unpacks a file from its archive."""
    from shlex import quote

    place, member = locate(path)
    program = "unzip" if place.endswith(".zip") else "tar -xf"
    return f"{program} {quote(place)} {quote(member or '')}"


@contextmanager
def _member(file: BinaryIO, place: str, member: str) -> Iterator[IO[bytes]]:
    with _understood(place):
        if _kind(file, place) == "zip":
            import zipfile

            with zipfile.ZipFile(file) as archive:
                info = next((i for i in archive.infolist() if i.filename == member), None)
                if info is not None:
                    check_growth(f"{place}/{member}", info.file_size, info.compress_size)
                    with archive.open(info) as stream:
                        yield stream
                    return
        else:
            with _tar(file, place) as tar:
                for entry in tar:
                    # Of a link in an archive nothing is opened.
                    wanted = entry.isfile() and entry.name == member
                    stream_of = tar.extractfile(entry) if wanted else None
                    if stream_of is not None:
                        yield stream_of
                        return
    raise InputError(f"{place}: contains no {member}")


@contextmanager
def _understood(path: str) -> Iterator[None]:
    """Turn what is wrong with an archive into one line."""
    # Imported here, as everywhere in this file: hardly any trace is in an archive.
    import tarfile
    import zipfile

    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: damaged archive: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (NotImplementedError, RuntimeError) as error:
        # An unknown compression; an encrypted file.
        raise InputError(f"{path}: cannot be read as an archive: {error}; unpack it") from None


def _kind(file: BinaryIO, path: str) -> str | None:
    """ "zip" or "tar", by the content of a file; None for anything else."""
    file.seek(0)
    start = file.read(_BLOCK) or b""
    file.seek(0)
    if start.startswith(_ZIP_MAGIC):
        return "zip"
    if is_gzip(start):
        try:
            start = next(iter(GzipBlocks(path, file, most=_BLOCK)), b"")
        except InputError:
            return None
        file.seek(0)
    return "tar" if start[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC) else None


def _tar(file: BinaryIO, path: str) -> tarfile.TarFile:
    import tarfile

    start = file.read(2)
    file.seek(0)
    if is_gzip(start):
        joined = cast(IO[bytes], _Joined(GzipBlocks(path, file)))
        return tarfile.open(fileobj=joined, mode="r|")
    return tarfile.open(fileobj=file, mode="r:")


class _Joined:
    """Blocks as one stream, of which only `read` is used."""

    def __init__(self, blocks: GzipBlocks) -> None:
        self._blocks = iter(blocks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        parts = []
        missing = size
        while missing > 0:
            if not self._rest:
                self._rest = next(self._blocks, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:missing], self._rest[missing:]
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)
