"""How every command writes: tables for a person, one JSON document for a program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output for a person: colours only on a terminal and without NO_COLOR.

    A pipe is given 120 columns: rich's guess of 80 breaks every second line of a table.
    """
    # Imported here: a program that asks for JSON should not wait for it.
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=False)


def encodable(text: str) -> str:
    """`text` without lone surrogates, which a file's name may hold and no encoding takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(document: dict[str, Any]) -> None:
    """One JSON document on standard output, indented."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2)
    sys.stdout.write(text.decode() + "\n")
