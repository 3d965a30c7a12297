"""Finds the configurations and launch scripts below a folder, without reading them whole."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from overlapkit.config.file_kind import SCRIPTS
from overlapkit.errors import InputError
from overlapkit.input_file import read_input
from overlapkit.output.console import encodable

YAML = (".yaml", ".yml")
MOST_FILES = 200_000
"""Files and folders that are looked at."""
MOST_BYTES = 4 * 1024 * 1024
_PASSED_OVER = frozenset({"node_modules", "site-packages", "__pycache__"})
"""Folders of other people's files; a virtual environment is known by its pyvenv.cfg."""

# A key of Megatron below a section, or a flag of it, or the start of a job. A file without is no
# configuration of a run.
_KEY = re.compile(
    rb"\b(ddp|comm_overlap|megatron_cfg|(tensor|pipeline|context|expert)_(model_)?parallel_size"
    rb"|overlap_(grad_reduce|param_gather)|(ub_)?tp_comm_overlap|use_distributed_optimizer)"
    rb"[\"']?\s*:"
)
_SECTION = re.compile(
    rb"^[ {]?[\"']?(model|ddp|comm_overlap|policy|trainer|actor\w*|megatron\w*)[\"']?\s*:",
    re.MULTILINE,
)
_FLAG = re.compile(
    rb"--(tensor|pipeline|context|expert)[-_]model[-_]parallel[-_]size|--num[-_]layers\b"
    rb"|--overlap[-_](grad[-_]reduce|param[-_]gather)|--use[-_]distributed[-_]optimizer"
    rb"|--tp[-_]comm[-_]overlap|--micro[-_]batch[-_]size"
    rb"|\bpretrain_\w+\.py\b|\bmegatron\b.*\b(sft|pt)\b|\bmegatron[._]"
)


@dataclass
class Found:
    """What is below the folders.

    Attributes:
        files: the candidates, in order of their names.
        others: how many other YAML files and scripts were passed over.
        unread: files and folders that could not be read, and why.
    """

    files: list[str] = field(default_factory=list)
    others: int = 0
    unread: list[tuple[str, str]] = field(default_factory=list)


def find(paths: Sequence[str], *, pass_over: bool = False) -> Found:
    """The YAML files and launch scripts at these paths that have to do with Megatron.

    Hidden files and folders, virtual environments and installed packages are passed over. A link to
    a folder is not followed, and a file with several names is taken once. A file that is named
    itself is taken whatever it contains.

    Args:
        paths: folders and files.
        pass_over: whether a named file is passed over as one below a folder is.

    Raises:
        InputError: a path does not exist, or more files are below it than are looked at.
    """
    found = Found()
    seen: set[tuple[int, int]] = set()
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - a name that no Path takes is no folder
            _look_below(path, found, seen)
        elif os.path.lexists(path) and not pass_over:
            found.files.append(path)
        elif os.path.lexists(path):
            if path.endswith((*YAML, *SCRIPTS)):
                _take(path, found, seen)
            else:
                found.others += 1
        else:
            raise InputError(f"{encodable(path)}: no such file or folder")
    return found


def _look_below(folder: str, found: Found, seen: set[tuple[int, int]]) -> None:
    for looked, path in enumerate(_walk(folder, found), start=1):
        if looked > MOST_FILES:
            raise InputError(
                f"{encodable(folder)}: has more than {MOST_FILES:,} files below it; name the "
                "folders of the configurations"
            )
        if path.endswith((*YAML, *SCRIPTS)):
            _take(path, found, seen)


def _walk(folder: str, found: Found) -> Iterator[str]:
    """Every file below a folder, in order of the names."""

    def refused(error: OSError) -> None:
        found.unread.append((encodable(str(error.filename)), str(error.strerror)))

    for here, folders, files in os.walk(folder, onerror=refused):
        if here != folder and "pyvenv.cfg" in files:
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _PASSED_OVER)
        for file in sorted(files):
            if not file.startswith("."):
                yield os.path.join(here, file).removeprefix("./")  # noqa: PTH118


def _take(path: str, found: Found, seen: set[tuple[int, int]]) -> None:
    """Take a file if it has to do with Megatron, and count it otherwise."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        found.unread.append((encodable(path), f"cannot be read: {error.strerror}"))
        return
    identity = (status.st_dev, status.st_ino)
    if identity in seen or not stat.S_ISREG(status.st_mode):
        return
    seen.add(identity)
    if status.st_size > MOST_BYTES:
        found.others += 1
        return
    try:
        raw = read_input(path, "configuration", most=MOST_BYTES)
    except InputError as error:
        found.unread.append((encodable(path), str(error).removeprefix(f"{path}: ")))
        return
    signs = (_FLAG,) if path.endswith(SCRIPTS) else (_KEY, _SECTION)
    if all(sign.search(raw) for sign in signs):
        found.files.append(path)
    else:
        found.others += 1
