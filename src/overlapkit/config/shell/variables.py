"""Expands the words of a shell script from variables; commands are never run."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from overlapkit.config.shell.arithmetic import Incalculable, calculate
from overlapkit.config.shell.syntax import Arithmetic, Assignment, Command, Parameter, Text, Word
from overlapkit.config.shell.values import (
    Array,
    Field,
    Piece,
    Unknown,
    Value,
    merged,
    split_into_fields,
)
from overlapkit.errors import InputError

MOST_CHARACTERS = 1024 * 1024
"""Limit of all expanded values of a script; a launch script needs some ten thousand."""
_PIECE = 32
"""Characters that each piece of a value adds to that count, since it takes time as well."""
_DEEPEST = 60
_KEYED = re.compile(r"\[[^\]]*\]\+?=")
_SLICE = re.compile(r":[ ]?(\d{1,5})(?::(\d{1,5}))?")
_CHANGE = re.compile(r"/(?P<all>/)?(?P<old>[\w.:=+, -]+)(?:/(?P<new>[\w.:=+,/ -]*))?")


class NotKnown(Exception):
    """An expression contains something that is not known."""

    def __init__(self, unknown: Unknown) -> None:
        self.unknown = unknown


class Variables:
    """The variables of a script while it is followed.

    Attributes:
        values: by name.
        exported: names that started processes see.
        positional: ``$1`` and its successors.
        replaced: notes on values of the script that the caller's values replaced.
    """

    def __init__(self, path: str, given: Mapping[str, str]) -> None:
        self.path = path
        self.given = {name: Field((Piece(text, 0),)) for name, text in given.items()}
        self.values: dict[str, Value] = dict(self.given)
        self.exported: set[str] = {name for name in given if not name.isdecimal()}
        numbers = sorted(int(n) for n in given if n.isascii() and n.isdecimal() and len(n) < 4)
        self.positional: list[Field] = [self.given[str(n)] for n in numbers if n > 0]
        self.replaced: dict[str, str] = {}
        self._characters = 0
        self._depth = 0

    # ---------------------------------------------------------------------------- assignments

    def assign(self, assignment: Assignment) -> None:
        """Execute an assignment; a variable that the caller gave keeps the caller's value."""
        a = assignment
        if a.value is None:
            self.values.setdefault(a.name, Field(()))
            return
        value = self._assigned(a)
        if a.name in self.given:
            if isinstance(value, Field) and value.unknown is None:
                self._note_replaced(a, value)
            return
        self.put(a.name, value)

    def put(self, name: str, value: Value) -> None:
        """Set a variable; an unknown value without a name gets this name."""
        if name in self.given:
            return
        if isinstance(value, Field):
            value = Field(tuple(_named(piece, name) for piece in value.pieces))
        self.values[name] = value

    def _assigned(self, a: Assignment) -> Value:
        old = self.values.get(a.name)
        if isinstance(a.value, tuple):
            fields = [field for word in a.value for field in self.fields(word)]
            if any(_KEYED.match(field.text) for field in fields):
                return self._keyed(a)
            if a.append and old is not None:
                fields = [*_fields_of(old), *fields]
            self._spend(sum(len(field.text) + 1 for field in fields))
            return Array(tuple(fields))
        assert a.value is not None
        added = self.scalar(a.value)
        if a.index or isinstance(old, Array):
            fields = list(_fields_of(old)) if old is not None else []
            try:
                at = self.count(a.index or "0", a.line)
            except NotKnown:
                return self._keyed(a)
            if not 0 <= at <= len(fields) + 10_000:
                raise InputError(f"{self.path}:{a.line}: {a.name}[{at}] is beyond any array")
            fields += [Field(())] * (at + 1 - len(fields))
            fields[at] = Field((*fields[at].pieces, *added.pieces)) if a.append else added
            return Array(tuple(fields))
        if a.append and isinstance(old, Field):
            return Field((*old.pieces, *added.pieces))
        return added

    def _keyed(self, a: Assignment) -> Field:
        why = "it is an associative array, or its index is not known, which is not followed"
        return Field((Piece("", a.line, unknown=Unknown(a.name, why, a.line)),))

    def _note_replaced(self, a: Assignment, value: Field) -> None:
        given = self.given[a.name].text
        # ${NAME:-8} already has the given value.
        if value.text != given:
            self.replaced.setdefault(
                a.name,
                f"{self.path}:{a.line}: {a.name}={given} as given, instead of {value.text[:40]!r}",
            )

    # ------------------------------------------------------------------------------ expansion

    def fields(self, word: Word) -> list[Field]:
        """The words that a word becomes."""
        return split_into_fields(list(self._pieces(word)))

    def scalar(self, word: Word) -> Field:
        """A word's value where it is not split, as in an assignment."""
        pieces = []
        for piece in self._pieces(word):
            if piece is None:
                pieces.append(Piece(" ", word.line))
            else:
                # An assigned value is split when it is used, whatever its quotes were.
                pieces.append(replace(piece, quoted=False))
        return Field(merged(pieces))

    def _pieces(self, word: Word) -> Iterator[Piece | None]:
        """Pieces of a word; None where ``"${A[@]}"`` begins another field."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise InputError(f"{self.path}:{word.line}: defaults nest too deeply")
        for part in word.parts:
            if isinstance(part, Text):
                self._spend(len(part.text), 0)
                yield Piece(part.text, part.line, quoted=True)
            elif isinstance(part, Command):
                lines = part.text.strip().splitlines() or [""]
                why = f"it is set by the command {lines[0][:50]!r}, which is not run"
                yield Piece("", part.line, part.quoted, Unknown(None, why, part.line))
            elif isinstance(part, Arithmetic):
                yield self._counted(part)
            else:
                yield from self._parameter(part)
        self._depth -= 1

    def _counted(self, part: Arithmetic) -> Piece:
        try:
            return Piece(str(self.count(part.text, part.line)), part.line, part.quoted)
        except NotKnown as problem:
            return Piece("", part.line, part.quoted, problem.unknown)

    def count(self, text: str, line: int) -> int:
        """The value of an arithmetic expression.

        Raises:
            NotKnown: it contains something that is not known.
        """

        def value_of(name: str) -> int:
            found = self.look_up(name)
            if found is None:
                raise NotKnown(Unknown(name, "it is not set in the script", line))
            if found.unknown is not None:
                raise NotKnown(found.unknown)
            number = found.text.strip()
            if re.fullmatch(r"-?\d{1,18}", number) is None:
                raise NotKnown(Unknown(name, f"{number[:30]!r} is not a whole number", line))
            return int(number)

        try:
            return calculate(text, value_of)
        except Incalculable as why:
            reason = f"$(({text.strip()[:50]})) has no value here: {why}"
            raise NotKnown(Unknown(None, reason, line)) from None

    def look_up(self, name: str) -> Field | None:
        """A variable's value as one text; None where it is not set."""
        if name.isdecimal():
            number = int(name[:6])
            if number == 0:
                return Field((Piece(self.path, 0),))
            inside = number <= len(self.positional)
            return self.positional[number - 1] if inside else None
        value = self.values.get(name)
        if isinstance(value, Array):
            return value.fields[0] if value.fields else None
        return value

    def _parameter(self, p: Parameter) -> Iterator[Piece | None]:
        if p.name in ("@", "*") and p.operator == "":
            yield from self._several(self.positional, p)
            return
        part = _SLICE.fullmatch(_written(p)) if "@" in (p.name, p.index) else None
        if part is not None and (p.name == "@" or p.name in self.values):
            start, count = int(part[1]), int(part[2] or 99_999)
            several = list(_fields_of(self.values[p.name])) if p.name != "@" else self.positional
            # ${@:1} begins with $1, ${A[@]:1} with the second.
            start = max(0, start - 1) if p.name == "@" else start
            yield from self._several(several[start : start + count], replace(p, index="@"))
            return
        if p.name in "#?$!-":
            known = str(len(self.positional)) if p.name == "#" else ""
            unknown = (
                None
                if known
                else Unknown(None, f"${p.name} is known only to the running shell", p.line)
            )
            yield Piece(known, p.line, p.quoted, unknown)
            return
        value = self.values.get(p.name)
        if p.index in ("@", "*") and p.operator == "":
            if value is None:
                yield Piece("", p.line, p.quoted, self._unset(p))
            else:
                yield from self._several(_fields_of(value), p)
            return
        found = self._element(p, value)
        yield from self._operated(p, found, value)

    def _element(self, p: Parameter, value: Value | None) -> Field | None:
        if p.index and isinstance(value, Array):
            try:
                at = self.count(p.index, p.line) if p.index not in ("@", "*") else 0
            except NotKnown as problem:
                return Field((Piece("", p.line, p.quoted, problem.unknown),))
            return value.fields[at] if -len(value.fields) <= at < len(value.fields) else None
        return self.look_up(p.name)

    def _operated(self, p: Parameter, found: Field | None, value: Value | None) -> Iterator[Piece]:
        unset = found is None
        empty = found is None or (not found.text and found.unknown is None)
        operator = p.operator
        if operator.lstrip(":") in ("-", "=", "+") and p.argument is not None:
            missing = empty if operator.startswith(":") else unset
            if operator.endswith("+"):
                if not missing:
                    yield from self._argument(p)
                return
            if missing:
                yield from self._argument(p)
                if operator.endswith("="):
                    self.put(p.name, self.scalar(p.argument))
                return
        elif operator == "length":
            counts_fields = isinstance(value, Array) and p.index in ("@", "*")
            length = len(_fields_of(value)) if counts_fields and value else None
            if length is None and found is not None and found.unknown is None:
                length = len(found.text)
            unknown = None if length is not None else self._unset(p)
            yield Piece("" if length is None else str(length), p.line, p.quoted, unknown)
            return
        elif operator == "indirect" and found is not None and found.unknown is None:
            yield from self._operated(
                replace(p, name=found.text, operator=""), self.look_up(found.text), None
            )
            return
        if found is None:
            yield Piece("", p.line, p.quoted, self._unset(p))
        elif found.unknown is not None or operator in ("", ":-", "-", ":=", "=", ":?", "?"):
            if p.quoted and not found.pieces:
                yield Piece("", p.line, True)
            yield from self._counted_in(replace(piece, quoted=p.quoted) for piece in found.pieces)
        else:
            yield self._changed(p, found)

    def _changed(self, p: Parameter, found: Field) -> Piece:
        """A value with a prefix or suffix removed, or in another case."""
        text = found.text
        cases = {",,": text.lower(), "^^": text.upper(), ",": text[:1].lower() + text[1:]}
        cases["^"] = text[:1].upper() + text[1:]
        result = cases.get(p.operator)
        if p.operator == "other" and p.index not in ("@", "*"):
            result = _substituted(text, _written(p))
        elif result is None and p.argument is not None and len(text) < 2000:
            pattern = self.scalar(p.argument)
            if pattern.unknown is None:
                result = _removed(text, p.operator, pattern.text)
        if result is None:
            why = f"${{{p.name}…}} has an operator that is not followed"
            return Piece("", p.line, p.quoted, Unknown(None, why, p.line))
        return Piece(result, found.line, p.quoted)

    def _argument(self, p: Parameter) -> Iterator[Piece]:
        assert p.argument is not None
        for piece in self._pieces(p.argument):
            quoted = piece is not None and (piece.quoted and p.quoted)
            yield (
                replace(piece, quoted=quoted) if piece is not None else Piece(" ", p.line, p.quoted)
            )

    def _several(
        self, fields: tuple[Field, ...] | list[Field], p: Parameter
    ) -> Iterator[Piece | None]:
        for number, field in enumerate(fields):
            self._spend(0)
            if number:
                yield (
                    None
                    if p.index == "@" or p.name == "@" or not p.quoted
                    else Piece(" ", p.line, p.quoted)
                )
            if p.quoted and not field.pieces:
                yield Piece("", p.line, True)
            yield from self._counted_in(replace(piece, quoted=p.quoted) for piece in field.pieces)

    def _counted_in(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._spend(len(piece.text))
            yield piece

    def _spend(self, characters: int, besides: int = _PIECE) -> None:
        self._characters += characters + besides
        if self._characters > MOST_CHARACTERS:
            raise InputError(
                f"{self.path}: its variables grow beyond {MOST_CHARACTERS >> 20} MiB; is it a "
                "launch script?"
            )

    def _unset(self, p: Parameter) -> Unknown:
        return Unknown(p.name, "it is not set in the script", p.line)


def _named(piece: Piece, name: str) -> Piece:
    if piece.unknown is None or piece.unknown.name is not None:
        return piece
    return replace(piece, unknown=replace(piece.unknown, name=name))


def _fields_of(value: Value) -> tuple[Field, ...]:
    return value.fields if isinstance(value, Array) else (value,)


def _written(p: Parameter) -> str:
    """The text after the name in an expansion that is kept as written."""
    return (p.argument.literal or "") if p.operator == "other" and p.argument is not None else ""


def _substituted(text: str, written: str) -> str | None:
    """A value after ``/old/new``, ``//old/new`` or ``:start:count``; None for other operators."""
    if (part := _SLICE.fullmatch(written)) is not None:
        start = int(part[1])
        return text[start : start + int(part[2])] if part[2] else text[start:]
    if (change := _CHANGE.fullmatch(written)) is not None:
        return text.replace(change["old"], change["new"] or "", -1 if change["all"] else 1)
    return None


def _removed(text: str, operator: str, pattern: str) -> str:
    """`text` without the shortest or, for a doubled sign, longest match at its start or end."""
    if operator.startswith("#"):
        ends = range(len(text) + 1)
        for end in reversed(ends) if operator == "##" else ends:
            if fnmatch.fnmatchcase(text[:end], pattern):
                return text[end:]
    else:
        starts = range(len(text) + 1)
        for start in starts if operator == "%%" else reversed(starts):
            if fnmatch.fnmatchcase(text[start:], pattern):
                return text[:start]
    return text
