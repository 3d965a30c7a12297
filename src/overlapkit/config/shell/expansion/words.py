"""Expands the words of a script; programs in them are never run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from overlapkit.config.shell.expansion.arithmetic import Incalculable, calculate
from overlapkit.config.shell.expansion.braces import braces_expanded
from overlapkit.config.shell.expansion.patterns import Pattern
from overlapkit.config.shell.grammar.syntax import (
    Arithmetic,
    Command,
    Expanded,
    Parameter,
    Part,
    Text,
    Word,
)
from overlapkit.config.shell.state import MOST_FIELDS, State
from overlapkit.config.shell.values import (
    Array,
    Field,
    Piece,
    Unknown,
    compacted,
    known,
    merged,
    split_into_fields,
)
from overlapkit.errors import InputError

MOST_EXPANDED = 64 * 1024 * 1024
"""Characters of all words that are expanded, which bounds the time of a script."""
_PIECE = 32
_DEEPEST = 60
_MOST_LINKS = 16
_NUMBER = re.compile(r"\s*[-+]?\d{1,19}\s*")

_FILES = re.compile(r"[*?]").search

Capture = Callable[[Command], Field]
"""What a command substitution gives."""


Note = Callable[[int, str], None]
"""Records what was assumed at a line."""


class NotKnown(Exception):
    """An expression contains something that is not known."""

    def __init__(self, unknown: Unknown) -> None:
        self.unknown = unknown


class Words:
    """Expansions on a state.

    Attributes:
        state: the variables; a subshell replaces it.
        unset: names of variables that an expansion read and nothing sets; a condition looks here
            for what it depends on.
        read: names of all variables that are read while a condition is judged; None elsewhere.
    """

    def __init__(self, state: State, capture: Capture, note: Note) -> None:
        self.state = state
        self.capture = capture
        self.note = note
        self.unset: list[str] = []
        self.read: dict[str, None] | None = None
        self.status: int | None = 0
        self._depth = 0
        self._links = 0
        self._expanded = 0

    # ---------------------------------------------------------------------------------- words

    def fields(self, word: Word) -> list[Field]:
        """The words that a word becomes."""
        result: list[Field] = []
        for each in braces_expanded(word):
            result += split_into_fields(self._pieces(each), self.state.separators)
            if len(result) > MOST_FIELDS:
                raise self._too_large()
        return result

    def file_pattern(self, word: Word, fields: list[Field]) -> str:
        """A field that stands for the files of its pattern, such as ``*.bin``; empty for none."""
        if "noglob" in self.state.options:
            return ""
        literal = any(isinstance(p, Text) and not p.quoted and _FILES(p.text) for p in word.parts)
        for field in fields:
            expanded = any(not p.quoted and _FILES(p.text) for p in field.pieces)
            # No file begins with the dashes of a flag.
            if (literal or expanded) and _FILES(field.text) and field.text[:1] != "-":
                return field.text
        return ""

    def scalar(self, word: Word) -> Field:
        """A word's value where it is not split, as in an assignment."""
        pieces: list[Piece] = []
        for part in word.parts:
            if isinstance(part, Parameter) and (value := self._plain(part)) is not None:
                # A value as it is: long lists grow by adding to themselves.
                self._spend(len(value.text) // 64, len(value.pieces))
                pieces += value.pieces
                continue
            for piece in self._pieces(Word((part,), word.line)):
                # An assigned value is split when it is used, whatever its quotes were.
                blank = Piece(" ", word.line)
                pieces.append(blank if piece is None else piece._replace(quoted=False))
        return Field(compacted(pieces) if len(pieces) > 32 else merged(pieces))

    def note_unset(self, value: Field) -> None:
        """Add what a value comes from, as far as nothing sets it, to `unset`."""
        self.unset += [
            piece.unknown.name
            for piece in value.pieces
            if piece.unknown is not None and piece.unknown.unset and piece.unknown.name is not None
        ]

    def _plain(self, part: Parameter) -> Field | None:
        """The value of ``$NAME``, where that is all that it is."""
        if part.operator or part.index or part.indirect or not part.name.isidentifier():
            return None
        self.note_read(part.name)
        value = self.state.value(part.name)
        return value if isinstance(value, Field) else None

    def note_read(self, name: str) -> None:
        """A condition depends on a variable."""
        if self.read is not None:
            # Arguments as the caller counts them.
            shifted = self.state.shifted if name.isdecimal() else 0
            self.read[str(int(name[:6]) + shifted) if shifted else name] = None

    def pattern(self, word: Word, *, extended: bool | None = None) -> Pattern | Unknown:
        """A word as a pattern, or why it is not known."""
        parts: list[tuple[str, bool]] = []
        for part in word.parts:
            if isinstance(part, Text):
                parts.append((part.text, part.quoted))
                continue
            for piece in self._pieces(Word((part,), word.line)):
                if piece is None:
                    parts.append((" ", True))
                elif piece.unknown is not None:
                    return piece.unknown
                else:
                    parts.append((piece.text, piece.quoted))
        special = "extglob" in self.state.options if extended is None else extended
        return Pattern(parts, extended=special)

    def _pieces(self, word: Word) -> Iterator[Piece | None]:
        """Pieces of a word; None where ``"${A[@]}"`` begins another field."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise InputError(f"{self.state.path}:{word.line}: defaults nest too deeply")
        try:
            for part in word.parts:
                yield from self._of_part(part)
        finally:
            self._depth -= 1

    def _of_part(self, part: Part) -> Iterator[Piece | None]:
        if isinstance(part, Text):
            self._spend(len(part.text), 0)
            yield Piece(part.text, part.line, quoted=True, file=self._file())
        elif isinstance(part, Command):
            found = self.capture(part)
            if part.quoted and not found.pieces:
                yield Piece("", part.line, quoted=True)
            yield from self._counted(found.pieces, quoted=part.quoted)
        elif isinstance(part, Arithmetic):
            yield self._calculated(part)
        elif isinstance(part, Expanded):
            yield from part.pieces
        else:
            yield from self._parameter(part)

    def _file(self) -> str:
        state = self.state
        return "" if state.source == state.path else state.source

    def _counted(self, pieces: Iterable[Piece], *, quoted: bool) -> Iterator[Piece]:
        for piece in pieces:
            self._spend(len(piece.text))
            yield piece if piece.quoted == quoted else piece._replace(quoted=quoted)

    def _spend(self, characters: int, besides: int = _PIECE) -> None:
        self._expanded += characters + besides
        if self._expanded > MOST_EXPANDED:
            raise self._too_large()

    def _too_large(self) -> InputError:
        return InputError(
            f"{self.state.path}: its variables grow beyond what a launch script has; is it one?"
        )

    def _parameter(self, p: Parameter) -> Iterator[Piece | None]:
        """Pieces of ``$A`` or ``${A…}``; None where another field begins."""
        raise NotImplementedError

    def element(self, name: str, index: str | None, line: int) -> Field | None:
        """A variable's value, or that of an array's element; None where it is not set."""
        raise NotImplementedError

    def needed(self, name: str, line: int) -> None:
        """Where ``set -u`` ends the script because a variable certainly has no value.

        Raises:
            Stop: it does.
        """
        raise NotImplementedError

    def unset_one(self, name: str, line: int) -> Unknown:
        """Why the value of a variable that nothing sets is not known."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------- arithmetic

    def _calculated(self, part: Arithmetic) -> Piece:
        try:
            return Piece(str(self.count(part.text)), part.line, part.quoted, file=self._file())
        except NotKnown as problem:
            return Piece("", part.line, part.quoted, problem.unknown)

    def count(self, text: Word) -> int:
        """The value of an arithmetic expression, whose assignments are made.

        Raises:
            NotKnown: it contains something that is not known.
        """
        expanded = self.scalar(text)
        if expanded.unknown is not None:
            raise NotKnown(expanded.unknown)
        return self.count_text(expanded.text, text.line)

    def count_text(self, text: str, line: int) -> int:
        """As `count`, of a text without expansions.

        Raises:
            NotKnown: it contains something that is not known.
        """
        try:
            return calculate(text, _Numbers(self, line))
        except Incalculable as why:
            reason = f"$(({text.strip()[:50]})) has no value here: {why}"
            raise NotKnown(Unknown(None, reason, line)) from None

    def number_of(self, name: str, index: int | None, line: int) -> int:
        """A variable's value in arithmetic: an expression itself, 0 where it is empty.

        Raises:
            NotKnown: it is not known, or no number.
        """
        found = self.element(name, None if index is None else str(index), line)
        if found is None and self.state.find(name) is not None:
            # Declared without a value, as by local: certainly empty.
            self.needed(name, line)
            return 0
        if found is None:
            self.unset.append(name)
            # Not empty but 0, or what it is where the script is started.
            raise NotKnown(replace(self.unset_one(name, line), unset=False))
        if found.unknown is not None:
            raise NotKnown(found.unknown)
        text = found.text.strip()
        if _NUMBER.fullmatch(text) and not text.lstrip("+-").startswith("0"):
            return int(text)
        self._links += 1
        if self._links > _MOST_LINKS:
            self._links = 0
            raise NotKnown(Unknown(name, "it refers to itself", line))
        try:
            return self.count_text(text, line)
        except NotKnown as problem:
            if problem.unknown.name is None:
                why = f"{text[:30]!r} is not a whole number"
                raise NotKnown(Unknown(name, why, line)) from None
            raise
        finally:
            self._links -= 1

    def set_number(self, name: str, index: int | None, value: int, line: int) -> None:
        """Assign a number."""
        result = known(str(value), line)
        if index is None and not isinstance(self.state.value(name), Array):
            self.state.put(name, result)
        else:
            self.state.put_element(name, index or 0, result)


class _Numbers:
    """The variables of an arithmetic expression."""

    def __init__(self, expander: Words, line: int) -> None:
        self._expander = expander
        self._line = line

    def number_of(self, name: str, index: int | None) -> int:
        return self._expander.number_of(name, index, self._line)

    def set_number(self, name: str, index: int | None, value: int) -> None:
        self._expander.set_number(name, index, value, self._line)
