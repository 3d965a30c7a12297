"""The state of a shell while a script is followed: variables with their attributes, arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from overlapkit.config.gaps import Gap
from overlapkit.config.shell.grammar.syntax import Node
from overlapkit.config.shell.handover import Lost
from overlapkit.config.shell.values import (
    BLANKS,
    Array,
    Field,
    Map,
    Piece,
    Value,
    fields_of,
)
from overlapkit.errors import InputError

MOST_ALIVE = 8 * 1024 * 1024
"""Characters that all variables of a script may have together; launch scripts have some ten
thousand, and lists of data files a megabyte."""
MOST_FIELDS = 200_000
"""Words that one command may have."""
ARGUMENTS = "@"
"""The name of a script's own arguments, all together."""
_PIECE = 32
"""Characters that each piece of a value adds to that count, since it takes memory as well."""
_MOST_REFERENCES = 8


@dataclass(frozen=True)
class Variable:
    """A variable's value and attributes.

    Attributes:
        value: None where it is declared and has none.
        refers: the name that a nameref (``declare -n``) stands for; empty for any other.
    """

    value: Value | None = None
    exported: bool = False
    readonly: bool = False
    integer: bool = False
    lower: bool = False
    upper: bool = False
    refers: str = ""


Arguments = tuple[list[Field | None], bool, int | None, int]
"""What `State.arguments` is."""


class ReadOnly(Exception):
    """An assignment to a variable that was declared readonly."""


@dataclass
class State:
    """What a subshell copies.

    Attributes:
        path: the script, for messages.
        given: values that the caller gave; they win over the script's own.
        scopes: variables by name, those of the script first, then of each function called.
        positional: ``$1`` and its successors; None where one before a given one is not given.
        has_all_arguments: whether there are no more of them, as in a function.
        shifted: how many of the script's own arguments ``shift`` took away.
        has_some: whether there are arguments that are not known, since the script ends without.
        name: ``$0``, where it is not `path`.
        open_at: before which of them, counted from 0, those of the script would stand that the
            caller did not give; None where there are none.
        functions: their bodies by name.
        options: of ``set`` and ``shopt``, by name.
        folder: the working folder; None where it is not known.
        source: the file that is followed now, as BASH_SOURCE has it.
        option_at: the argument that getopts reads next, from 1, and the offset of its letter.
        called: names of the functions that are called now, the innermost one first.
        unread: why a variable that nothing sets may still be set, such as by a file that is not
            here; empty where everything was read.
        defaulted: variables whose defaults were taken although what is not read may set them, with
            why; shared by all processes.
        lost: variables that a program on the way here did not hand on, or perhaps not.
        beyond: why the environment may have more variables than were followed, such as those of a
            container's image; empty where it has none.
        gaps: what is not known of the commands so far, and may set more than is here.
        deciders: by the name of a variable that only commands set which are not followed, the
            variables that decide on these and that nothing sets.
    """

    path: str
    given: Mapping[str, Field] = field(default_factory=dict)
    scopes: list[dict[str, Variable]] = field(default_factory=lambda: [{}])
    positional: list[Field | None] = field(default_factory=list)
    has_all_arguments: bool = False
    shifted: int = 0
    has_some: bool = False
    name: str = ""
    open_at: int | None = None
    functions: dict[str, Node] = field(default_factory=dict)
    options: set[str] = field(default_factory=set)
    folder: str | None = None
    source: str = ""
    called: tuple[str, ...] = ()
    option_at: tuple[int, int] = (1, 1)
    unread: str = ""
    defaulted: dict[str, str] = field(default_factory=dict)
    lost: Mapping[str, Lost] = field(default_factory=dict)
    beyond: str = ""
    gaps: tuple[Gap, ...] = ()
    alive: int = 0
    deciders: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def copy(self) -> State:
        """The state of a new process."""
        return replace(
            self,
            scopes=[dict(scope) for scope in self.scopes],
            positional=list(self.positional),
            functions=dict(self.functions),
            deciders=dict(self.deciders),
            options=set(self.options),
        )

    def pass_on(self, words: Sequence[Field]) -> None:
        """Take words as the arguments of a function or of another script.

        ``"$@"`` of a script may stand for any, where its own arguments are not given.
        """
        self.open_at = next((n for n, word in enumerate(words) if is_all_arguments(word)), None)
        if self.open_at is not None:
            # The words before them move the script's own numbers.
            self.shifted -= self.open_at - len(self.positional)
        self.positional = [word for word in words if not is_all_arguments(word)]
        self.has_all_arguments = self.open_at is None

    @property
    def arguments(self) -> Arguments:
        """What a call of a function or another file replaces, to be put back with `restore`."""
        return self.positional, self.has_all_arguments, self.open_at, self.shifted

    def restore(self, arguments: Arguments) -> None:
        """Put back what `arguments` was."""
        self.positional, self.has_all_arguments, self.open_at, self.shifted = arguments

    # -------------------------------------------------------------------------------- reading

    def find(self, name: str) -> Variable | None:
        """A variable, the innermost one of its name; a nameref's own."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def target(self, name: str) -> str:
        """The name that is meant: that of a nameref's target."""
        for _ in range(_MOST_REFERENCES):
            found = self.find(name)
            if found is None or not found.refers:
                return name
            name = found.refers
        return name

    def value(self, name: str) -> Value | None:
        """A variable's value; None where it is not set."""
        found = self.find(self.target(name))
        return None if found is None else found.value

    def text(self, name: str, otherwise: str = "") -> str:
        """A variable's known text."""
        value = self.value(name)
        return value.text if isinstance(value, Field) and value.unknown is None else otherwise

    @property
    def separators(self) -> str:
        """IFS."""
        return self.text("IFS", BLANKS)

    def every(self) -> dict[str, Value]:
        """All variables that are set, with their values."""
        return {
            name: variable.value
            for scope in self.scopes
            for name, variable in scope.items()
            if variable.value is not None and self.find(name) is variable
        }

    def exported(self) -> dict[str, Field]:
        """What a program that is started sees."""
        every = {name: v for scope in self.scopes for name, v in scope.items()}
        return {n: v.value for n, v in every.items() if v.exported and isinstance(v.value, Field)}

    # -------------------------------------------------------------------------------- writing

    def scope_of(self, name: str) -> dict[str, Variable]:
        """The scope that an assignment changes: the innermost one that has the name."""
        return next((scope for scope in reversed(self.scopes) if name in scope), self.scopes[0])

    def put(self, name: str, value: Value, *, scope: dict[str, Variable] | None = None) -> None:
        """Set a variable; one that the caller gave keeps the caller's value.

        An unknown value without a name gets this name.

        Raises:
            ReadOnly: it must not be changed.
            InputError: the variables become larger than a launch script's can.
        """
        name = self.target(name)
        if name in self.given:
            return
        reference = self.find(name)
        if reference is not None and reference.refers == name and isinstance(value, Field):
            self.mark(name, local=name in self.scopes[-1], refers=value.text or name)
            return
        scope = self.scope_of(name) if scope is None else scope
        former = scope.get(name, Variable())
        if former.readonly:
            raise ReadOnly(name)
        if isinstance(value, Field):
            value = _in_case(_named(value, name), former)
        self.alive += _size(value) - _size(former.value)
        if self.alive > MOST_ALIVE:
            raise InputError(
                f"{self.path}: its variables grow beyond {MOST_ALIVE >> 20} MiB; is it a launch "
                "script?"
            )
        scope[name] = replace(former, value=value)
        if "allexport" in self.options:
            scope[name] = replace(scope[name], exported=True)

    def put_element(self, name: str, key: int | str, value: Field) -> None:
        """Set an element of an array.

        Raises:
            ReadOnly: the array must not be changed.
            InputError: an index beyond any array.
        """
        former = self.value(name)
        if isinstance(former, Map):
            self.put(name, Map({**former.fields, str(key): value}))
            return
        plain = [former] if isinstance(former, Field) else []
        fields = list(former.fields) if isinstance(former, Array) else [*plain]
        at = int(key)
        at += len(fields) if at < 0 else 0
        if not 0 <= at <= len(fields) + 10_000:
            raise InputError(f"{self.path}:{value.line}: {name}[{at}] is beyond any array")
        fields += [None] * (at + 1 - len(fields))
        fields[at] = value
        self.put(name, Array(tuple(fields)))

    def mark(self, name: str, *, local: bool = False, **attributes: bool | str) -> None:
        """Give a variable attributes; a new one has no value."""
        scope = self.scopes[-1] if local else self.scope_of(name)
        scope[name] = replace(scope.get(name, Variable()), **attributes)  # type: ignore[arg-type]

    def unset(self, name: str) -> None:
        """Take a variable away, where it may be."""
        name = self.target(name)
        found = self.find(name)
        if found is not None and not found.readonly and name not in self.given:
            self.alive -= _size(found.value)
            scope = self.scope_of(name)
            if scope is self.scopes[-1] and len(self.scopes) > 1:
                # A function's own variable hides the outer one all the same.
                scope[name] = Variable()
            else:
                del scope[name]


def is_all_arguments(word: Field) -> bool:
    """Whether a word stands for arguments that are not given, which bash takes as none."""
    lacking = word.unknown if len(word.pieces) == 1 else None
    return lacking is not None and lacking.unset and lacking.name == ARGUMENTS


def _in_case(value: Field, variable: Variable) -> Field:
    """A value as ``declare -l`` or ``-u`` keeps it."""
    if not (variable.lower or variable.upper):
        return value
    change = str.lower if variable.lower else str.upper
    return Field(tuple(piece._replace(text=change(piece.text)) for piece in value.pieces))


def _named(value: Field, name: str) -> Field:
    """A value whose unknown parts have a variable to give."""
    if value.unknown is None:
        return value
    return Field(
        tuple(
            piece._replace(unknown=replace(piece.unknown, name=name))
            if piece.unknown is not None and piece.unknown.name is None
            else piece
            for piece in value.pieces
        )
    )


def _size(value: Value | None) -> int:
    """Characters that a value counts for."""
    return sum(len(each.text) + _PIECE * (1 + len(each.pieces)) for each in fields_of(value))


_NUMBERED = re.compile(r"\d{1,3}")


def state_of(path: str, given: Mapping[str, str]) -> State:
    """The state at the start of a script.

    Args:
        path: the script.
        given: values of variables; "1" is ``$1``.
    """
    values = {name: Field((Piece(text, 0),)) for name, text in given.items()}
    numbers = {int(n): v for n, v in values.items() if _NUMBERED.fullmatch(n) and int(n) > 0}
    named = {name: v for name, v in values.items() if not name.isdecimal()}
    state = State(path, named, source=path)
    state.positional = [numbers.get(n) for n in range(1, max(numbers, default=0) + 1)]
    state.open_at = None if numbers else 0
    state.scopes[0] = {name: Variable(v, exported=True) for name, v in named.items()}
    return state
