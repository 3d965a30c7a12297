"""Values of a shell's variables; each character has the line that it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby


@dataclass(frozen=True)
class Unknown:
    """Why a value is not known, and the variable that has to be given."""

    name: str | None
    why: str
    line: int


@dataclass(frozen=True)
class Piece:
    """Characters of one line, or a value that is not known.

    Attributes:
        text: the characters; empty where the value is not known.
        line: their line, from 1; 0 for what the caller gave.
        quoted: whether they were in quotes, so that they are not split into words.
        unknown: why they are not known.
    """

    text: str
    line: int
    quoted: bool = False
    unknown: Unknown | None = None


Scalar = tuple[Piece, ...]


@dataclass(frozen=True)
class Field:
    """One word after expansion."""

    pieces: Scalar

    @property
    def text(self) -> str:
        """Its known characters."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def unknown(self) -> Unknown | None:
        """The first part that is not known."""
        return next((p.unknown for p in self.pieces if p.unknown is not None), None)

    @property
    def line(self) -> int:
        """The line that it begins on; 0 where that is not known."""
        return next((piece.line for piece in self.pieces if piece.text or piece.unknown), 0)


@dataclass(frozen=True)
class Array:
    """An indexed array's words."""

    fields: tuple[Field, ...]


Value = Field | Array

_BLANK = re.compile(r"[ \t\n\r]+")


def stripped(value: Field, *, first_line: bool) -> Field:
    """A text as ``read`` reads it: without blanks at its ends, and perhaps only its first line."""
    kept: list[Piece] = []
    for piece in value.pieces:
        text, end, _ = piece.text.partition("\n") if first_line else (piece.text, "", "")
        kept.append(replace(piece, text=text))
        if end:
            break
    for order, strip in ((1, str.lstrip), (-1, str.rstrip)):
        kept = kept[::order]
        while kept and kept[0].unknown is None:
            text = strip(kept[0].text, " \t\n")
            kept[0:1] = [replace(kept[0], text=text)] if text else []
            if text:
                break
        kept = kept[::order]
    return Field(tuple(kept))


def without_start(value: Field, start: str) -> Field:
    """A value without the text `start`, which it begins with."""
    left, kept = len(start), list[Piece]()
    for piece in value.pieces:
        kept.append(replace(piece, text=piece.text[left:]))
        left = max(0, left - len(piece.text))
    return Field(tuple(kept))


def merged(pieces: Iterable[Piece]) -> Scalar:
    """The same pieces, where known pieces of one line with the same quoting are joined."""
    result: list[Piece] = []
    for (known, line, quoted), group in groupby(
        pieces, lambda p: (p.unknown is None, p.line, p.quoted)
    ):
        same = list(group)
        result += [Piece("".join(p.text for p in same), line, quoted)] if known else same
    return tuple(result)


def split_into_fields(pieces: list[Piece | None]) -> list[Field]:
    """Fields of an expanded word: unquoted blanks separate them, and so does None."""
    fields: list[Field] = []
    here: list[Piece] = []
    begun = False

    def end() -> None:
        nonlocal begun
        if begun:
            fields.append(Field(tuple(here)))
        here.clear()
        begun = False

    for piece in pieces:
        if piece is None:
            end()
        elif piece.quoted or piece.unknown is not None:
            here.append(piece)
            begun = True
        else:
            line, at = piece.line, 0
            for blank in [*_BLANK.finditer(piece.text), None]:
                stop = len(piece.text) if blank is None else blank.start()
                if stop > at:
                    here.append(Piece(piece.text[at:stop], line))
                    begun = True
                if blank is not None:
                    end()
                    at = blank.end()
    end()
    return fields
