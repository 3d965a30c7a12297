"""What earlier hunts tried: a file that a hunt adds to."""

from __future__ import annotations

import os
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from overlapkit.errors import InputError
from overlapkit.input_file import read_input
from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.generate import Pairs, pairs
from overlapkit.lab.protocol import MOST_BYTES

PACKAGES = ("megatron-core", "torch", "overlapkit")
"""With other versions of these a case is tried again."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A case that was tried.

    Attributes:
        case: its features.
        kind: what became of it, see `overlapkit.lab.hunt.judge.Fate`.
    """

    case: Case
    kind: str


class Memory(msgspec.Struct, kw_only=True):
    """Content of the file.

    Attributes:
        versions: of the packages with which the cases were tried.
        seeds: of the hunts.
        tried: cases, in the order in which they were tried.
    """

    versions: dict[str, str]
    seeds: list[int] = []
    tried: list[Tried] = []

    def pairs(self) -> Pairs:
        """How often each pair of features was tried."""
        found: Pairs = Counter()
        for one in self.tried:
            found.update(pairs(one.case))
        return found


def default_path() -> Path:
    """In the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "overlapkit" / "lab-hunt.json"


def installed_versions() -> dict[str, str]:
    """Of `PACKAGES`, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def remembered(path: Path) -> Memory:
    """What the file says; nothing where there is none, or where other versions were tried.

    Raises:
        InputError: it cannot be read, or it is damaged.
    """
    fresh = Memory(versions=installed_versions())
    if not path.exists():
        return fresh
    content = read_input(str(path), "memory of the hunt", most=MOST_BYTES)
    try:
        found = msgspec.json.decode(content, type=Memory)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}; remove it, or name another with --memory") from None
    return found if found.versions == fresh.versions else fresh


def remember(path: Path, memory: Memory) -> None:
    """Write the file, completely or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(msgspec.json.encode(memory))
        aside.replace(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name another with --memory") from None
