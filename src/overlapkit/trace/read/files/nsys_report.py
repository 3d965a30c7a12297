"""Reads a report of Nsight Systems (.nsys-rep) through the installed program ``nsys``."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from shlex import quote

from overlapkit.errors import InputError
from overlapkit.processes import die_with_parent
from overlapkit.trace.read.byte_source import check_readable
from overlapkit.trace.read.device_work import Work
from overlapkit.trace.read.files.archives import locate, unpack_command, unpacked
from overlapkit.trace.read.nsys import read_nsys
from overlapkit.trace.read.stated import NOTHING_STATED, Stated


def read_report(path: str, stated: Stated = NOTHING_STATED, room: str | None = None) -> list[Work]:
    """The device work in a report. It is exported into a temporary file, which is removed.

    Args:
        path: the report.
        stated: what the user says of kernels.
        room: a folder for the export; by default one of its own.

    Raises:
        InputError: it cannot be read, nsys is not installed or fails, or it has no device work.
    """
    check_readable(path)
    program = shutil.which("nsys")
    if program is None:
        raise InputError(
            f"{path}: is a report of Nsight Systems, and nsys is not installed here; where it is: "
            f"{_command(path)}"
        )
    with (
        tempfile.TemporaryDirectory(prefix="overlapkit-", dir=room) as folder,
        unpacked(path, folder) as place,
    ):
        exported = str(Path(folder, "export.sqlite"))
        _export(program, place, exported)
        try:
            works = read_nsys(exported, stated)
        except InputError as error:
            raise InputError(str(error).replace(exported, path)) from None
    for work in works:
        work.path = path
    return works


def _command(path: str) -> str:
    """The command that exports a report, from its archive if it is in one."""
    member = locate(path)[1]
    report = path if member is None else member
    output = f"{report.rpartition('.')[0]}.sqlite"
    export = f"nsys export --type sqlite --output {quote(output)} {quote(report)}"
    return export if member is None else f"{unpack_command(path)} && {export}"


def _export(program: str, path: str, exported: str) -> None:
    command = [program, "export", "--type", "sqlite", "--output", exported, os.path.abspath(path)]  # noqa: PTH100
    try:
        # However this process ends, the export ends too.
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            preexec_fn=_end_with_parent,
        )
    except OSError as error:
        raise InputError(f"{path}: nsys cannot be started: {error.strerror}") from None
    if done.returncode != 0 or not Path(exported).is_file():
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise InputError(
            f"{path}: nsys export failed ({said[-1] if said else f'status {done.returncode}'}); "
            "use the nsys that recorded it, or a newer one"
        )


def _end_with_parent() -> None:
    # On another system than Linux, the export outlives only a parent that is killed.
    with suppress(OSError, AttributeError):
        die_with_parent()
