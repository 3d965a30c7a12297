"""Assignments of a shell, and what all commands know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from overlapkit.config.gaps import Doubt, Gap
from overlapkit.config.shell.commands.status import Grounds, Status
from overlapkit.config.shell.commands.stream import Stream
from overlapkit.config.shell.expansion.expand import Expander
from overlapkit.config.shell.expansion.words import NotKnown
from overlapkit.config.shell.grammar.syntax import Assignment, Word
from overlapkit.config.shell.state import State, Variable
from overlapkit.config.shell.values import (
    EMPTY,
    Array,
    Field,
    Map,
    Unknown,
    Value,
    known,
    not_known,
    part_of,
)

NAME = re.compile(r"[A-Za-z_]\w*")
"""A variable's name."""
ELEMENT = re.compile(r"([A-Za-z_]\w*)\[(.*)\]", re.DOTALL)
"""An element of an array: its name and the text in brackets."""
_MOST_ELEMENTS = 10_000
_KEYED = re.compile(r"\[((?:[^\]]|\](?!\+?=))*)\](\+?)=", re.DOTALL)


class Assignments:
    """Variables that are set.

    Attributes:
        input: what the command that is followed now can read.
        guards: what decides whether it is reached.
        loops: how many loops it is in.
        conditions: how many conditions it is in, where ``set -e`` ends nothing.
        negations: how many of them are a ``!``.
        code: the exit status of a command that failed; None for the usual 1.
    """

    def __init__(self, path: str, state: State) -> None:
        self.path = path
        self.expander = Expander(state, self.captured, self.note)
        self.code: int | None = None
        self.conditions = 0
        self.negations = 0
        self.notes: list[str] = []
        self.input = Stream(None)
        self.guards = Grounds()
        self.loops = 0

    @property
    def state(self) -> State:
        """The variables of the process that is followed now."""
        return self.expander.state

    def captured(self, command: object) -> Field:
        """What a command substitution gives."""
        raise NotImplementedError

    def nested(self, text: list[Field], line: int) -> Status:
        """Follow commands in a value."""
        raise NotImplementedError

    def printed(self, value: Field) -> None:
        """What a command prints, for a substitution or the next command of a pipeline."""
        raise NotImplementedError

    def note(self, line: int, text: str) -> None:
        """Record what was assumed at a line of the file that is followed now."""
        self.notes.append(f"{self.state.source}:{line}: {text}")

    def note_pattern(self, pattern: str, line: int) -> None:
        """Note that a pattern stays as it is, where bash would put the files that it fits."""
        text = (
            f"{pattern[:60]} may stand for files, which are not looked at: taken as it is written"
        )
        self.note(line, text)

    def gap(
        self,
        line: int,
        what: str,
        remedy: str,
        *,
        variables: Iterable[str] | None = None,
        flags: Iterable[str] | None = (),
        doubt: Doubt = Doubt.UNREAD,
    ) -> None:
        """Record what is not known at a line of the file that is followed now.

        Args:
            line: the line.
            what, remedy, flags, doubt: as of `Gap`.
            variables: those that it may set, without those that the caller gave; None for any.
        """
        given = frozenset(self.state.given)
        names = None if variables is None else frozenset(variables) - given
        added = None if flags is None else frozenset(flags)
        if names == added == frozenset():
            return
        where = f"{self.state.source}:{line}"
        found = Gap(where, what, remedy, names, added, doubt)
        if found not in self.state.gaps:
            self.state.gaps = (*self.state.gaps, found)

    def assign(self, a: Assignment, *, scope: dict[str, Variable] | None = None) -> None:
        """Execute an assignment.

        Raises:
            ReadOnly: the variable must not be changed.
        """
        if a.value is None:
            return
        if isinstance(a.value, tuple):
            self.state.put(a.name, self._array(a, a.value), scope=scope)
            return
        if a.index:
            self._assign_element(a, a.value)
            return
        value = self._assigned(a, a.value)
        given = self.state.given.get(a.name)
        if given is not None:
            # ${NAME:-8} already has the given value.
            if value.unknown is None and value.text != given.text:
                shown = f"{a.name}={given.text} as given, instead of {value.text[:40]!r}"
                self.note(a.line, shown)
            return
        if isinstance(self.state.value(a.name), Array) and scope is None:
            self.state.put_element(a.name, 0, value)
        else:
            self.state.put(a.name, value, scope=scope)

    def _assigned(self, a: Assignment, word: Word) -> Field:
        """The value of a plain assignment, with what it is added to."""
        value = self.expander.scalar(word)
        variable = self.state.find(self.state.target(a.name))
        old = self.expander.look_up(a.name) if a.append else None
        if variable is not None and variable.integer:
            return self._number(value, old, a.line)
        return value if old is None else Field((*old.pieces, *value.pieces))

    def _number(self, value: Field, old: Field | None, line: int) -> Field:
        """A value of a variable that ``declare -i`` made a number."""
        lacking = value.unknown or (old.unknown if old is not None else None)
        if lacking is not None:
            return not_known(lacking)
        text = value.text if old is None else f"({old.text or 0}) + ({value.text or 0})"
        try:
            return known(str(self.expander.count_text(text, line)), line)
        except NotKnown as problem:
            return not_known(problem.unknown)

    def _assign_element(self, a: Assignment, word: Word) -> None:
        value = self.expander.scalar(word)
        try:
            key = self.expander.key_of(a.name, a.index, a.line)
        except NotKnown as problem:
            # Any element may have been set.
            why = f"an element is set whose index is not known: {problem.unknown.why}"
            self.state.put(a.name, not_known(Unknown(problem.unknown.name, why, a.line)))
            return
        variable = self.state.find(self.state.target(a.name))
        old = (self.expander.element(a.name, str(key), a.line) or EMPTY) if a.append else None
        if variable is not None and variable.integer:
            value = self._number(value, old, a.line)
        elif old is not None:
            value = Field((*old.pieces, *value.pieces))
        self.state.put_element(a.name, key, value)

    def _array(self, a: Assignment, words: Sequence[Word]) -> Value:
        """The value of ``NAME=(…)``, with what it is added to."""
        former = self.state.value(a.name) if a.append else None
        keyed = [self._keyed(word) for word in words]
        if isinstance(self.state.value(a.name), Map):
            return self._entries(former, words, keyed)
        plain = [former] if isinstance(former, Field) else []
        fields: list[Field | None] = list(former.fields) if isinstance(former, Array) else [*plain]
        at = len(fields)
        for word, each in zip(words, keyed, strict=True):
            try:
                # A word without an index comes after the one before it.
                at = at if each is None else self.expander.count_text(each[0], a.line)
            except NotKnown as problem:
                return not_known(problem.unknown)
            new = self.expander.fields(word) if each is None else [each[1]]
            pattern = "" if each is not None else self.expander.file_pattern(word, new)
            if pattern:
                self.note_pattern(pattern, a.line)
            at = min(at, _MOST_ELEMENTS)
            fields += [None] * (at - len(fields))
            fields[at : at + len(new)] = new
            at += len(new)
        variable = self.state.find(self.state.target(a.name))
        if variable is not None and variable.integer:
            fields = [None if f is None else self._number(f, None, a.line) for f in fields]
        return Array(tuple(fields))

    def _entries(
        self, former: Value | None, words: Sequence[Word], keyed: list[tuple[str, Field] | None]
    ) -> Map:
        """The value of an associative array: ``([key]=value …)`` or ``(key value …)``."""
        entries = dict(former.fields) if isinstance(former, Map) else {}
        if words and keyed[0] is None:
            plain = [field for word in words for field in self.expander.fields(word)]
            plain += [EMPTY] * (len(plain) % 2)
            entries |= {plain[n].text: plain[n + 1] for n in range(0, len(plain), 2)}
        else:
            entries |= dict(each for each in keyed if each is not None)
        return Map(entries)

    def _keyed(self, word: Word) -> tuple[str, Field] | None:
        """Key and value of ``[key]=value`` in an array; None for a plain word."""
        start = word.parts[0] if word.parts else None
        if (
            start is None
            or getattr(start, "quoted", True)
            or not str(getattr(start, "text", "")).startswith("[")
        ):
            return None
        value = self.expander.scalar(word)
        found = _KEYED.match(value.text)
        return None if found is None else (found[1], part_of(value, found.end()))

    @contextmanager
    def with_assignments(self, assignments: Sequence[Assignment]) -> Iterator[None]:
        """Variables that are set for one command, and exported to it."""
        if not assignments:
            yield
            return
        scope: dict[str, Variable] = {}
        self.state.scopes.append(scope)
        try:
            for a in assignments:
                self.assign(a, scope=scope)
                if a.name in scope:
                    scope[a.name] = replace(scope[a.name], exported=True)
            yield
        finally:
            self.leave(scope)

    def leave(self, scope: dict[str, Variable]) -> None:
        """Forget the variables of a scope."""
        self.state.scopes[:] = [each for each in self.state.scopes if each is not scope]
