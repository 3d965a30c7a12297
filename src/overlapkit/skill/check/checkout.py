"""The checkout that pages are checked against: its files by name, and their text."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from overlapkit.errors import InputError
from overlapkit.skill.check.git import Git
from overlapkit.skill.check.quote import Source, source_of

MOST_BYTES = 16 * 1024 * 1024
"""Of a file that is read; the largest source files have about a megabyte."""
PASSED_OVER = frozenset(
    {".git", ".hg", ".venv", "venv", "node_modules", "site-packages", "__pycache__", ".tox", ".nox"}
)
"""Folders that hold no source of the checkout, where no git says which do."""
MOST_FILES = 500_000
_SUBMODULE = re.compile(r"^\s*path\s*=\s*(\S.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Resolved:
    """The file that a name on a page means.

    Attributes:
        path: relative to the checkout; None where no one file is meant.
        problem: why not, for a message.
        unknown: whether the file may well exist where it was not looked for.
    """

    path: str | None
    problem: str = ""
    unknown: bool = False


class Checkout:
    """A folder with source files.

    Attributes:
        root: the folder, with links resolved.
        git: what git knows of it.

    Raises:
        InputError: it is not a folder that can be read.
    """

    def __init__(self, name: str) -> None:
        try:
            self.root = Path(os.path.realpath(name))
            if not self.root.is_dir():
                raise InputError(f"--root {name}: is not a folder; name the checkout's folder")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--root {name}: cannot be read: {reason}") from None
        self.git = Git(self.root)
        self._sources: dict[str, Source | None] = {}

    @cached_property
    def files(self) -> list[str]:
        """Every file, relative to the root.

        Raises:
            InputError: there are more than are looked at.
        """
        return files_below(self.root, self.git)

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The files of each name without folders."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault(path.rpartition("/")[2], []).append(path)
        return found

    @cached_property
    def absent(self) -> list[str]:
        """Folders of submodules that are not checked out."""
        # A copy without git's index still has the list.
        listed = _SUBMODULE.findall(_text(self.root / ".gitmodules"))
        names = dict.fromkeys([*self.git.submodules(), *listed])
        return [name for name in names if _has_nothing(self.root / name)]

    def source(self, path: str) -> Source | None:
        """The lines of a file; None where it is not a text that can be read."""
        if path not in self._sources:
            self._sources[path] = _read(self.root / path)
        return self._sources[path]

    def has(self, path: str) -> bool:
        """Whether a path is that of a file inside the root."""
        try:
            place = (self.root / path).resolve()
            return place.is_relative_to(self.root) and place.is_file()
        except (OSError, ValueError):
            return False

    def resolve(self, name: str, folder: Path) -> Resolved:
        """The file that a name means: from the root, from a page's folder, or by its last parts.

        Args:
            name: as written.
            folder: of the page.
        """
        plain = name.lstrip("/") if name.startswith("/") else name
        plain = os.path.normpath(plain).replace(os.sep, "/")
        if not plain.startswith("../") and self.has(plain):
            return Resolved(plain)
        beside = Path(os.path.normpath(folder / name))
        if beside.is_relative_to(self.root) and self.has(str(beside.relative_to(self.root))):
            return Resolved(beside.relative_to(self.root).as_posix())
        parts = PurePosixPath(plain).parts
        same = [
            path
            for path in self.by_name.get(parts[-1] if parts else "", [])
            if PurePosixPath(path).parts[-len(parts) :] == parts and self.has(path)
        ]
        if len(same) == 1:
            return Resolved(same[0])
        if same:
            return Resolved(None, f"several files: {', '.join(same[:3])}", unknown=True)
        return self._missing(plain)

    def in_skill(self, name: str, folder: Path) -> str | None:
        """A file that a skill brings itself, by the name that a page of it has: its whole path.

        Args:
            name: as written, from the folder of the SKILL.md.
            folder: of the page.
        """
        for place in (folder, folder.parent):
            # A link inside the skill's folder is a part of it.
            file = Path(os.path.normpath(place / name))
            if (place / "SKILL.md").is_file() and file.is_relative_to(place) and file.is_file():
                return str(file)
        return None

    def _missing(self, plain: str) -> Resolved:
        for folder in self.absent:
            if plain.startswith(f"{folder}/"):
                why = f"the submodule {folder} is not checked out"
                return Resolved(None, why, unknown=True)
        for parent in PurePosixPath(plain).parents:
            place = self.root / parent
            if str(parent) != "." and place.is_dir() and _has_nothing(place):
                return Resolved(None, f"the folder {parent} is empty", unknown=True)
        if "/" not in plain:
            more = f", and {', '.join(self.absent)} is not checked out" if self.absent else ""
            return Resolved(None, f"no file of that name{more}", unknown=True)
        return Resolved(None, "no such file")


def _has_nothing(folder: Path) -> bool:
    """Whether a folder is empty, or is not there."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _text(path: Path) -> str:
    source = _read(path)
    return "\n".join(source.lines) if source else ""


def _read(path: Path) -> Source | None:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        raw = path.read_bytes()
    except OSError:
        return None
    return None if b"\0" in raw else source_of(raw.decode("utf-8-sig", "replace"))


def files_below(folder: Path, git: Git) -> list[str]:
    """The files that git does not ignore, relative to the folder; without git nearly all.

    Raises:
        InputError: there are more than are looked at.
    """
    listed = git.files()
    if listed is not None:
        return sorted(listed)
    found: list[str] = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if name not in PASSED_OVER]
        found += [os.path.relpath(Path(place) / name, folder) for name in names]
        if len(found) > MOST_FILES:
            raise InputError(f"{folder}: more than {MOST_FILES} files; name a smaller folder")
    return sorted(found)
