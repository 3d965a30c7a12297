"""A unified diff of one file, as git apply and patch take it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_NO_BREAK = "\\ No newline at end of file\n"
_UNUSUAL = re.compile(r'[\x00-\x1f\x7f"\\]')


def unified_diff(name: str, before: str, after: str) -> str:
    """The difference of two texts of a file; empty where there is none.

    Only a line feed ends a line, so that a carriage return before it is kept.

    Args:
        name: the file, as the user named it. The diff has its path below the current folder, or
            below the root folder where it is elsewhere.
        before, after: its text.
    """
    path = _path(name)
    lines = difflib.unified_diff(
        _lines(before), _lines(after), _label("a/", path), _label("b/", path)
    )
    return "".join(_ended(lines))


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+$", text)


def _ended(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n{_NO_BREAK}"


def _path(name: str) -> str:
    path = Path(os.path.abspath(name))  # noqa: PTH100 - links stay
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix().lstrip("/")


def _label(prefix: str, path: str) -> str:
    """A name in a diff's head: git ends one with blanks by a tab, and quotes what is unusual."""
    whole = prefix + path
    if _UNUSUAL.search(whole):
        quoted = _UNUSUAL.sub(lambda m: f"\\{ord(m[0]):03o}", whole)
        return f'"{quoted}"'
    return f"{whole}\t" if " " in whole else whole
