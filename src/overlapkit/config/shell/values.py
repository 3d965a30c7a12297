"""Values of a shell's variables; each character has the line that it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple


@dataclass(frozen=True)
class Unknown:
    """Why a value is not known, and the variable that has to be given.

    Attributes:
        name: the variable; None where the value comes from none.
        why: what sets it.
        line: where that is, from 1.
        unset: whether it is only that nothing sets the variable, so that bash would take it as
            empty where nobody sets it before the script starts.
        several: whether it stands for any number of words, as an array does.
    """

    name: str | None
    why: str
    line: int
    unset: bool = False
    several: bool = False


class Piece(NamedTuple):
    """Characters of one line, or a value that is not known.

    Attributes:
        text: the characters; empty where the value is not known.
        line: their line, from 1; 0 for what the caller gave.
        quoted: whether they were in quotes, so that they are not split into words.
        unknown: why they are not known.
        file: the file that they are in; empty for the script itself.
    """

    text: str
    line: int
    quoted: bool = False
    unknown: Unknown | None = None
    file: str = ""


Scalar = tuple[Piece, ...]


@dataclass(frozen=True)
class Field:
    """One word after expansion, or the value of a variable."""

    pieces: Scalar

    @cached_property
    def text(self) -> str:
        """Its known characters."""
        return "".join([piece.text for piece in self.pieces])

    @cached_property
    def unknown(self) -> Unknown | None:
        """The first part that is not known."""
        return next((p.unknown for p in self.pieces if p.unknown is not None), None)

    @property
    def first(self) -> Piece | None:
        """The piece that it begins with; None where it is empty."""
        return next((piece for piece in self.pieces if piece.text or piece.unknown), None)

    @property
    def line(self) -> int:
        """The line that it begins on; 0 where that is not known."""
        return 0 if self.first is None else self.first.line

    @property
    def file(self) -> str:
        """The file that it begins in; empty for the script itself."""
        return "" if self.first is None else self.first.file


EMPTY = Field(())


@dataclass(frozen=True)
class Array:
    """An indexed array's words by their index; None at an index that is not set."""

    fields: tuple[Field | None, ...]


@dataclass(frozen=True)
class Map:
    """An associative array's words by their keys."""

    fields: dict[str, Field]

    @property
    def keys(self) -> list[str]:
        """The keys in the order in which bash lists them, which is that of its hash table."""
        newest_first = reversed(self.fields)
        return sorted(newest_first, key=_bucket)


def _bucket(key: str) -> int:
    # FNV-1 of 32 bits in 1,024 buckets: bash 5.2, hashlib.c and assoc.h.
    value = 2166136261
    for byte in key.encode():
        value = value * 16777619 & 0xFFFFFFFF ^ byte
    return value & 1023


Value = Field | Array | Map


def known(text: str, line: int, *, quoted: bool = False) -> Field:
    """A value of known text."""
    return Field((Piece(text, line, quoted),))


def not_known(unknown: Unknown, *, quoted: bool = False) -> Field:
    """A value that is not known."""
    return Field((Piece("", unknown.line, quoted, unknown),))


def fields_of(value: Value | None) -> tuple[Field, ...]:
    """The words of a variable, in order."""
    if value is None:
        return ()
    if isinstance(value, Map):
        return tuple(value.fields[key] for key in value.keys)
    if isinstance(value, Array):
        return tuple(field for field in value.fields if field is not None)
    return (value,)


def without_start(value: Field, start: str) -> Field:
    """A value without the text `start`, which it begins with."""
    return part_of(value, len(start))


def part_of(value: Field, start: int, end: int | None = None) -> Field:
    """A value's characters from `start` to `end`, which are offsets in its text."""
    kept, at = list[Piece](), 0
    for piece in value.pieces:
        stop = len(piece.text) if end is None else max(0, end - at)
        kept.append(piece._replace(text=piece.text[max(0, start - at) : stop]))
        at += len(piece.text)
    return Field(tuple(piece for piece in kept if piece.text or piece.unknown))


def merged(pieces: Iterable[Piece]) -> Scalar:
    """The same pieces, where known pieces of one line with the same quoting are joined."""
    result: list[Piece] = []
    for (is_known, line, quoted, file), group in groupby(
        pieces, lambda p: (p.unknown is None, p.line, p.quoted, p.file)
    ):
        same = list(group)
        joined = [Piece("".join([p.text for p in same]), line, quoted, None, file)]
        result += joined if is_known else same
    return tuple(result)


_MANY = 64
"""Pieces of a value from which on they are joined where no flag begins."""


def compacted(pieces: list[Piece]) -> Scalar:
    """The same text in few pieces: a long list of data files needs no line for each of its words.

    Flags keep their lines.
    """
    if len(pieces) <= _MANY:
        return tuple(pieces)
    result: list[Piece] = []
    run: list[str] = []
    for piece in pieces:
        last = result[-1] if result else None
        joins = (
            last is not None
            and last.unknown is None
            and piece.unknown is None
            and last.quoted == piece.quoted
            and "--" not in piece.text
        )
        if joins:
            run.append(piece.text)
            continue
        if last is not None and run:
            result[-1] = last._replace(text=last.text + "".join(run))
        run = []
        result.append(piece)
    if run:
        result[-1] = result[-1]._replace(text=result[-1].text + "".join(run))
    return tuple(result)


BLANKS = " \t\n"
"""What separates words where IFS is not set."""


def split_into_fields(pieces: Iterable[Piece | None], separators: str = BLANKS) -> list[Field]:
    """Fields of an expanded word: separators that are not quoted end them, and so does None.

    Args:
        pieces: the word's pieces; None where ``"${A[@]}"`` begins another field.
        separators: IFS. Of blanks, several in a row separate once; of other characters, each does.
    """
    fields: list[Field] = []
    here: list[Piece] = []
    begun = False
    # A blank ended the last field: a separator that follows belongs to that end.
    ended_by_blank = False

    def end() -> None:
        nonlocal begun
        if begun:
            fields.append(Field(tuple(here)))
        here.clear()
        begun = False

    for piece in pieces:
        if piece is None:
            end()
            ended_by_blank = False
        elif piece.quoted or piece.unknown is not None or not separators:
            here.append(piece)
            begun = begun or piece.quoted or bool(piece.text) or piece.unknown is not None
            ended_by_blank = False
        else:
            at = 0
            for offset, char in enumerate(piece.text):
                if char not in separators:
                    continue
                if offset > at:
                    here.append(piece._replace(text=piece.text[at:offset]))
                    begun = True
                    ended_by_blank = False
                at = offset + 1
                if char in BLANKS:
                    ended_by_blank = ended_by_blank or begun
                    end()
                elif not begun and not ended_by_blank:
                    fields.append(EMPTY)
                else:
                    end()
                    ended_by_blank = False
            if at < len(piece.text):
                here.append(piece._replace(text=piece.text[at:]))
                begun = True
                ended_by_blank = False
    end()
    return fields
