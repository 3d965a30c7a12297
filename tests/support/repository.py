"""A git repository that a test writes and commits into."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CODE = """\
import logging


class Gate:
    def decide(self, config):
        if config.tp_size < 2:
            logging.warning("TP size below 2")
            return False
        elif not config.sequence_parallel:
            logging.warning("no sequence parallelism")
            return False
        return True

    def select(self, pp_size, vp_size):
        if pp_size > 1 and vp_size > 1:
            return "overlapped"
        return "batched"
"""
"""Line 6 begins the gate of TP, line 15 the selection of PP."""


class Repository:
    """A git repository that a test writes and commits into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        """The output of a git command, which must succeed."""
        person = {
            f"GIT_{who}_{what}": "a@b"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            env=os.environ | person | {"GIT_CONFIG_GLOBAL": os.devnull},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def write(self, path: str, text: str) -> Path:
        """A file with this text."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def commit(self) -> None:
        """Commit everything."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "x")
