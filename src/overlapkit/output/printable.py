"""Text from files, made safe for terminals and encodings."""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct

DocumentT = TypeVar("DocumentT")


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates replaced by U+FFFD."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def all_printable(document: DocumentT) -> DocumentT:
    """A JSON document, or a part of it, whose texts are all printable; they come from files."""
    result: Any = _printable(document)
    return result  # type: ignore[no-any-return]


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Struct):
        names = value.__struct_fields__
        return type(value)(**{name: _printable(getattr(value, name)) for name in names})
    if isinstance(value, dict):
        return {printable(str(k)): _printable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value
