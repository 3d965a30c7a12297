"""Text from files, made fit for terminals and encodings."""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """`text` with what a terminal would obey and no encoding takes made visible as U+FFFD."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def all_printable(value: Any) -> Any:
    """A JSON document whose texts, which come from files, are all printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(k)): all_printable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [all_printable(item) for item in value]
    return value
