"""Standard output: tables for a person, one JSON document for a program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output for a person: colors only on a terminal and without NO_COLOR.

    A pipe is given 120 columns for tables, and lines that are not broken.
    """
    # Imported here: JSON output should not wait for it.
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else 120,
        soft_wrap=not terminal,
        highlight=False,
        # A name from a file or a trace is text, whatever brackets it contains.
        markup=False,
        emoji=False,
    )


def encodable(text: str) -> str:
    """`text` without lone surrogates, which a file name can contain and no encoding accepts."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(document: msgspec.Struct | dict[str, Any]) -> None:
    """One JSON document on standard output, indented."""
    write_text(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def write_text(text: str) -> None:
    """Text on standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
