"""Finds the traces that a user named: files, folders with what is below them, and archives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from overlapkit.errors import InputError
from overlapkit.input_file import is_file
from overlapkit.output.files import real_path
from overlapkit.trace.read.byte_source import ByteSource
from overlapkit.trace.read.files.archives import is_archive, locate, members
from overlapkit.trace.read.files.foreign import name_of_kind

JSON = (".json", ".json.gz", ".json.zst")
DATABASES = (".sqlite",)
REPORTS = (".nsys-rep", ".qdrep")
"""Reports of Nsight Systems; the second is their name before version 2021.4."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
SUFFIXES = (*JSON, *DATABASES, *REPORTS, *ARCHIVES)
"""Files in a folder that are read as traces."""

MAX_FILES = 200_000
"""Files below a folder beyond which it is refused."""

_NAMED = 3
"""Files that a note names; of the others it says how many there are."""

_LOOKED_AT = 8 << 20
"""Bytes of a JSON file in which its list of events must begin."""


@dataclass
class Traces:
    """What was named.

    Attributes:
        paths: the traces, in order. One in an archive is named as if that were a folder.
        notes: what else is in the folders and archives.
    """

    paths: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_traces(files: Sequence[str]) -> Traces:
    """The traces among files, and in folders and archives.

    Raises:
        InputError: a folder or an archive contains no trace, one cannot be read, or a file is given
            twice.
    """
    traces = Traces()
    seen: set[str] = set()
    for name in files:
        if os.path.isdir(name):  # noqa: PTH112 - Path.is_dir raises for a name too long
            _add_inside(name, list(_below(name)), traces, seen)
        elif is_file(name) and is_archive(name):
            inside = [f"{name}/{member}" for member in members(name)]
            _add_inside(name, inside, traces, seen)
        elif (place := real_path(name)) in seen:
            raise InputError(f"{name}: is given twice")
        else:
            seen.add(place)
            traces.paths.append(name)
    return traces


@contextmanager
def room_for_exports(paths: Sequence[str]) -> Iterator[str | None]:
    """A temporary folder, removed at the end, where there are reports of Nsight Systems, or
    databases in archives.

    A worker that is ended cannot remove what it has written, so this is for the process that
    starts the workers.
    """
    needed = (
        path.endswith(REPORTS) or (path.endswith(DATABASES) and locate(path)[1] is not None)
        for path in paths
    )
    if not any(needed):
        yield None
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="overlapkit-") as folder:
        yield folder


def _add_inside(name: str, inside: Sequence[str], traces: Traces, seen: set[str]) -> None:
    """Add the traces in a folder or an archive, and a note of what is left out."""
    found: list[str] = []
    left_out: list[str] = []
    exports = {path.rpartition(".")[0] for path in inside if path.endswith(DATABASES)}
    for path in inside:
        place = real_path(path)
        plain = locate(path)[1] is None
        if plain and path.endswith(ARCHIVES) and is_archive(path):
            _add_inside(path, [f"{path}/{m}" for m in members(path)], traces, seen)
        elif place in seen or not _is_trace(path, exports):
            left_out.append(path)
        else:
            seen.add(place)
            found.append(path)
    if not found and not any(path.startswith(f"{name}/") for path in traces.paths):
        known = next(((p, k) for p in left_out if (k := name_of_kind(p, b"")) is not None), None)
        what = "" if known is None else f"; {_inside(known[0], name)} is {known[1]}"
        raise InputError(f"{name}: contains no trace ({', '.join(SUFFIXES)}){what}")
    traces.paths += found
    if left_out:
        names = ", ".join(_inside(path, name) for path in left_out[:_NAMED])
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        plural = "s are" if len(left_out) > 1 else " is"
        traces.notes.append(
            f"{name}: {len(left_out)} file{plural} left out, as no trace or a trace again: "
            f"{names}{more}"
        )


def _inside(path: str, folder: str) -> str:
    return path.removeprefix(folder).lstrip("/")


def _below(folder: str) -> Iterator[str]:
    """The files below a folder, sorted; symbolic links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None

    count = 0
    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = str(Path(place, name))
            if is_file(path):
                count += 1
                if count > MAX_FILES:
                    raise InputError(
                        f"{folder}: has more than {MAX_FILES:,} files; name the traces"
                    )
                yield path


def _is_trace(path: str, exports: set[str]) -> bool:
    if Path(path).name.startswith("."):
        return False
    if path.endswith(JSON):
        return _has_events(path)
    if path.endswith(REPORTS):
        return path.rpartition(".")[0] not in exports
    return path.endswith(DATABASES)


def _has_events(path: str) -> bool:
    """Whether JSON has a list of events, or is too damaged to tell."""
    text = b""
    try:
        for block in ByteSource(path):
            text += block
            begin = text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if b'"traceEvents"' in text or (begin == b"[" and b'"ph"' in text):
                return True
            if len(text) > _LOOKED_AT or begin not in (b"{", b"[", b""):
                return False
    except InputError:
        # Reading it says what is wrong.
        return True
    return False
