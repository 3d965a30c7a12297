"""Repairs text that profilers write and that is not JSON: in a chunk at once, or in one event.

PyTorch formats the arguments of a collective itself and writes nothing for an empty text
(``"Process Group Description": ,``). Names of ranges are copied as they are in some versions, with
their quotes, backslashes and control characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

UNESCAPED = "name with quotes or backslashes that are not escaped, repaired"
"""What is counted for such names, wherever they are repaired."""

# Searched for in whole chunks: patterns that begin with a fixed character are the fastest.
_NO_VALUE = re.compile(rb'"\s*:(?=\s*[,}\]])')
_NOT_A_NUMBER = re.compile(
    rb"(?:(?:NaN|nan|NAN)(?:\(\w{0,9}\))?|Infinity|infinity|INF|Inf|inf)(?=\s*[,}\]])"
)
_NOT_NUMBERS = (b"NaN", b"nan", b"NAN", b"nf", b"INF")
_EXTRA_COMMA = re.compile(rb',(?=\s*(?:[}\]]|,\s*["{]))')
_FIRST_COMMA = re.compile(rb'\{\s*,(?=\s*")')
_BACKSLASH = re.compile(rb"\\.", re.DOTALL)
_ESCAPES = frozenset(b'"\\/bfnrtu')
_WHITE = b" \t\r\n"
# A control character becomes a space: outside of strings it is white space, if it is allowed.
_SPACES = bytes(32 if code < 32 else code for code in range(256))
_ODD_CONTROL = bytes(code for code in range(32) if code not in _WHITE)

_STRUCTURE = re.compile(rb'["{}\[\]:,]')
_AFTER_KEY = re.compile(rb"\s*:")
_AFTER_VALUE = re.compile(rb'\s*(?:,\s*"[^"\\]{0,200}"\s*:|,?\s*\}\s*(?:[,}\]]|$))')
_AFTER_ELEMENT = re.compile(rb'\s*(?:,\s*["\d\[{tfn-]|\]\s*(?:[,}\]]|$))')
_NEXT_KEY = re.compile(rb'\s*,\s*"[^"\\]{1,200}"\s*:')
# A name can have any character, a category cannot: the event would be taken for another kind.
_IS_CATEGORY = re.compile(rb'"(?:cat|ph)"\s*:\s*"$')
_SWALLOWED_KEY = re.compile(rb'"\s*:')
_WRONG_ESCAPE = re.compile(rb'(?<!\\)(?:\\\\)*\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')
_VALUE_ENDS = tuple(bytes([code]) for code in b'"0123456789}]el')
_ESCAPE = re.compile(rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|\\|"')


def repair_chunk(text: bytes) -> tuple[bytes, Counter[str]] | None:
    """The text without what can be repaired wherever it is, and what that was, with counts.

    Returns:
        None where there is nothing of the kind.
    """
    found: Counter[str] = Counter()
    before = text
    try:
        text.decode()
    except UnicodeDecodeError:
        text = text.decode(errors="replace").encode()
        found["chunk with invalid UTF-8, invalid bytes replaced"] = 1
    odd = len(text) - len(text.translate(None, _ODD_CONTROL))
    found["control character, treated as a space"] = odd
    # Tabs and line ends are also white space between values, so that they are not counted.
    text = text.translate(_SPACES)
    places = [m.end() for m in _NO_VALUE.finditer(text) if _is_key(text, m.start())]
    text = _spliced(text, [(place, place, b"null") for place in places])
    found["key without a value, value treated as absent"] = len(places)
    if any(word in text for word in _NOT_NUMBERS):
        spans = [_with_sign(text, *m.span()) for m in _NOT_A_NUMBER.finditer(text)]
        values = [(start, end, b"null") for start, end in spans if _begins_value(text, start)]
        text = _spliced(text, values)
        found["NaN or Infinity, treated as absent"] = len(values)
    commas = [m.span() for m in _EXTRA_COMMA.finditer(text) if _ends_value(text, m.start())]
    text = _spliced(text, [(start, end, b"") for start, end in commas])
    first = [m.span() for m in _FIRST_COMMA.finditer(text) if _begins_object(text, m.start())]
    text = _spliced(text, [(start, end, b"{") for start, end in first])
    found["comma too many, ignored"] = len(commas) + len(first)
    if b"\\" in text:
        paths = _paths(text)
        text = _spliced(text, [(a, b, _escaped(text[a:b])) for a, b in paths])
        found[UNESCAPED] = len(paths)
    return None if text == before else (text, +found)


def _spliced(text: bytes, changes: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The text with each stretch, from a start up to an end, replaced; the stretches in order."""
    if not changes:
        return text
    parts: list[bytes] = []
    done = 0
    for start, end, new in changes:
        parts += text[done:start], new
        done = end
    return b"".join((*parts, text[done:]))


def _is_key(text: bytes, quote: int) -> bool:
    """Whether the string that ends with this quote begins after a bracket or a comma."""
    start = text.rfind(b'"', max(0, quote - 200), quote)
    return start > 0 and text[max(0, start - 64) : start].rstrip(_WHITE)[-1:] in (b"{", b",")


def _with_sign(text: bytes, start: int, end: int) -> tuple[int, int]:
    return (start - 1, end) if text[start - 1 : start] in (b"-", b"+") else (start, end)


def _begins_value(text: bytes, place: int) -> bool:
    """Whether what is before it ends a key or begins an element; in a name it does neither."""
    begin = text[max(0, place - 64) : place].rstrip(_WHITE)
    return begin[-1:] in (b"[", b",") or (begin.endswith(b'":') and begin[-3:-2] != b"\\")


def _ends_value(text: bytes, comma: int) -> bool:
    return text[max(0, comma - 64) : comma].rstrip(_WHITE)[-1:] in _VALUE_ENDS


def _begins_object(text: bytes, brace: int) -> bool:
    return text[max(0, brace - 64) : brace].rstrip(_WHITE)[-1:] in (b":", b",", b"[")


def _paths(text: bytes) -> list[tuple[int, int]]:
    """The strings with a backslash that escapes nothing, in order."""
    strings = []
    done = 0
    for match in _BACKSLASH.finditer(text):
        if match.start() < done or text[match.end() - 1] in _ESCAPES:
            continue
        start, end = text.rfind(b'"', done, match.start()) + 1, text.find(b'"', match.end())
        # Where a backslash is before the quote, that may not be the end.
        whole = start and end >= 0 and text[end - 1 : end] != b"\\"
        if whole and not _IS_CATEGORY.search(text, max(0, start - 20), start):
            strings.append((start, end))
        done = end if end >= 0 else len(text)
    return strings


def repair_strings(text: bytes) -> bytes | None:
    """One event with the quotes and backslashes inside its strings escaped.

    A quote ends a string where what follows it can follow a string there: a colon after a key; a
    comma and the next key, or closing brackets, after a value.

    Returns:
        None where a string has no end, its end is missing and the next key seems to be in it, or it
        is a key or the category.
    """
    parts: list[bytes] = []
    open_brackets = bytearray()
    position = done = 0
    before = b""
    while (match := _STRUCTURE.search(text, position)) is not None:
        token, position = match.group(), match.end()
        if token in b"{[":
            open_brackets += token
        elif token in b"}]":
            if open_brackets:
                open_brackets.pop()
        elif token == b'"':
            in_list = open_brackets[-1:] == b"["
            is_key = not in_list and before != b":"
            following = _AFTER_KEY if is_key else _AFTER_ELEMENT if in_list else _AFTER_VALUE
            end = _string_end(text, position, following)
            if end is None or _SWALLOWED_KEY.search(text, position, end):
                return None
            string = _escaped(text[position:end])
            is_category = _IS_CATEGORY.search(text, max(0, position - 20), position)
            if (is_key or is_category) and string != text[position:end]:
                return None
            parts += text[done:position], string
            done, position = end, end + 1
        before = token
    return b"".join((*parts, text[done:]))


def _string_end(text: bytes, position: int, following: re.Pattern[bytes]) -> int | None:
    """Where the quote is that ends a string."""
    while (quote := text.find(b'"', position)) >= 0:
        backslashes = quote - len(text[position:quote].rstrip(b"\\")) - position
        # A folder's name in Windows ends with a backslash, which escapes nothing there.
        if (_NEXT_KEY if backslashes % 2 else following).match(text, quote + 1):
            return quote
        position = quote + 1
    return None


def _escaped(string: bytes) -> bytes:
    # Where one backslash escapes nothing, none does: it is a path or a pattern.
    literal = _WRONG_ESCAPE.search(string) is not None

    def each(match: re.Match[bytes]) -> bytes:
        found = match.group()
        if found == b'"':
            return rb"\""
        if len(found) == 1:
            return rb"\\"
        return b"\\" + found if literal and found not in (rb"\"", rb"\\") else found

    return _ESCAPE.sub(each, string)
