"""Backslash escapes of a shell: those of ``$'…'``, ``printf`` and ``echo -e``."""

from __future__ import annotations

import re
from typing import Literal

_PLAIN = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "E": "\x1b",
    "f": "\f",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "?": "?",
}
_ESCAPE = {
    "quotes": re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|[0-7]{1,3}|c.|.)", re.DOTALL),
    "printf": re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|[0-7]{1,3}|.)", re.DOTALL),
    "echo": re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|0[0-7]{0,3}|.)", re.DOTALL),
}


def unescaped(text: str, kind: Literal["quotes", "printf", "echo"]) -> str:
    """A text with its escapes replaced, as bash's manual has them.

    Args:
        text: the text.
        kind: where it is: in ``$'…'``, the format of ``printf``, or a word of ``echo -e``, whose
            octal numbers begin with 0.
    """
    return _ESCAPE[kind].sub(_meant, text) if "\\" in text else text


def _meant(found: re.Match[str]) -> str:
    escape = found[1]
    if len(escape) > 1 and escape[0] in "xu":
        return chr(int(escape[1:], 16))
    if len(escape) > 1 and escape[0] == "c":
        return chr(ord(escape[1].upper()) ^ 64)
    if escape[0] in "01234567":
        return chr(int(escape, 8) & 255)
    return _PLAIN.get(escape, found[0])
