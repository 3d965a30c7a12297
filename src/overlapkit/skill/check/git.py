"""What git knows of a checkout. Only reads: no hook, filter or network is used."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

_SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat")
_TIMEOUT = 60
"""Seconds; the history of a large repository is read within two."""
_REMOTE = re.compile(
    r"(?:\w+://(?!/)[^/\s]+/|[\w.-]+@[\w.-]+:)(?:\S+/)?([\w.-]+/[\w.-]+?)(?:\.git)?/?$"
)
"""An address of a repository on a host, as its owner and name."""
_SUBMODULE = "160000"
"""The mode of a submodule in git's index."""


class Git:
    """The work tree that a folder is in.

    Attributes:
        root: its top folder; None where the folder is in none, or there is no git.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        top = self._run("rev-parse", "--show-toplevel")
        self.root = Path(os.fsdecode(top.rstrip(b"\n"))) if top else None

    def _run(self, *arguments: str) -> bytes | None:
        """The output of a command of git; None where it fails."""
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"}
        try:
            done = subprocess.run(
                ["git", *_SAFE, *arguments],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def files(self) -> list[str] | None:
        """The files of the folder that are not ignored, relative to it; None without git."""
        if self.root is None:
            return None
        known = self._run("ls-files", "-z", "--cached", "--recurse-submodules")
        others = self._run("ls-files", "-z", "--others", "--exclude-standard")
        if known is None or others is None:
            return None
        names = (known + others).split(b"\0")
        return list(dict.fromkeys(os.fsdecode(name) for name in names if name))

    def submodules(self) -> list[str]:
        """The folders of submodules, relative to the folder."""
        listed = self._run("ls-files", "-z", "--stage") if self.root else None
        entries = os.fsdecode(listed or b"").split("\0")
        return [entry.partition("\t")[2] for entry in entries if entry.startswith(_SUBMODULE)]

    def blame(self, path: Path) -> dict[int, str]:
        """The commit that each line of a file is from, by the line's number from 1.

        Lines that are not committed are left out.
        """
        found: dict[int, str] = {}
        output = self._run("blame", "--porcelain", "--", str(path)) if self.root else None
        for line in (output or b"").split(b"\n"):
            match = re.match(rb"([0-9a-f]{40,64}) \d+ (\d+)", line)
            if match and set(match[1]) != {ord("0")}:
                found[int(match[2])] = match[1].decode()
        return found

    @cache  # noqa: B019 - one object for each checkout of a command
    def text_at(self, commit: str, path: str) -> str | None:
        """A file as it was, by its path relative to the folder; None where it was not there."""
        content = self._run("show", f"{commit}:./{path}")
        return None if content is None else content.decode("utf-8", "replace")

    @cache  # noqa: B019
    def renames(self, commit: str) -> dict[str, str]:
        """Files that have another name now than at a commit: the old names and the new ones."""
        output = self._run("diff", "--relative", "-z", "-M", "--name-status", commit)
        parts = iter(os.fsdecode(output or b"").split("\0"))
        found = {}
        for status in parts:
            old = next(parts, "")
            if status[:1] in ("R", "C"):
                new = next(parts, "")
                if status[:1] == "R":
                    found[old] = new
        return found

    @cache  # noqa: B019
    def remotes(self) -> frozenset[str]:
        """The repositories on a host that remotes name, as ``owner/name`` in small letters."""
        listed = self._run("config", "--get-regexp", r"^remote\..*\.url$") if self.root else None
        found = (_REMOTE.search(line) for line in os.fsdecode(listed or b"").splitlines())
        return frozenset(match[1].lower() for match in found if match)

    @cache  # noqa: B019
    def commit_of(self, ref: str, *, tags_only: bool) -> str | None:
        """The commit that a tag, or the name of a commit, means; None where git has none."""
        name = f"refs/tags/{ref}" if tags_only else ref
        if self.root is None or ref.startswith("-"):
            return None
        found = self._run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        return found.decode().strip() if found else None

    def commit(self) -> str | None:
        """The commit that is checked out, shortened; None where there is none."""
        found = self._run("rev-parse", "--short=10", "HEAD")
        return found.decode().strip() if found else None
