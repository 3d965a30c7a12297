"""The shell's built-in commands that set variables or control what is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum

from overlapkit.config.shell.conditions import evaluate_test
from overlapkit.config.shell.expand import Expander, NotKnown
from overlapkit.config.shell.programs import formatted
from overlapkit.config.shell.state import ReadOnly, State, Variable
from overlapkit.config.shell.syntax import Assignment, Simple, Word
from overlapkit.config.shell.values import (
    BLANKS,
    EMPTY,
    Array,
    Field,
    Map,
    Piece,
    Unknown,
    Value,
    known,
    not_known,
    part_of,
    split_into_fields,
)


class Status(Enum):
    """How a command ends."""

    YES = 0
    NO = 1
    ASSUMED = 2
    """A program, which is not run and is assumed to succeed."""
    UNKNOWN = 3
    """A test, whose result is not known without running it."""

    @staticmethod
    def of(truth: bool | None) -> Status:
        """That of a test."""
        return Status.UNKNOWN if truth is None else Status.YES if truth else Status.NO

    @property
    def negated(self) -> Status:
        """Its opposite; an assumed success is no reason to assume a failure."""
        opposite = {Status.YES: Status.NO, Status.NO: Status.YES}
        return opposite.get(self, Status.UNKNOWN)


class Stop(Exception):
    """exit, return, break or continue.

    Attributes:
        kind: which of these.
        line: where it is.
        status: how it says that the script or function ended.
        levels: how many loops break or continue leaves.
        names: variables that decide whether it is reached, as far as nothing sets them.
    """

    def __init__(
        self,
        kind: str,
        line: int,
        status: Status = Status.YES,
        levels: int = 1,
        names: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self.line = line
        self.status = status
        self.levels = levels
        self.names = names


@dataclass
class Stream:
    """The input of commands: what is left to read; None where it is not known."""

    text: Field | None

    def line(self, delimiter: str = "\n") -> Field | None:
        """Read up to a delimiter; None at the end, or where the text is not known."""
        if self.text is None or not self.text.pieces:
            return None
        at = self.text.text.find(delimiter) if delimiter else -1
        end = len(self.text.text) if at < 0 else at
        row = part_of(self.text, 0, end)
        self.text = part_of(self.text, end + len(delimiter)) if at >= 0 else EMPTY
        return row


_NAME = re.compile(r"[A-Za-z_]\w*")
_ELEMENT = re.compile(r"([A-Za-z_]\w*)\[(.*)\]", re.DOTALL)
_KEYED = re.compile(r"\[((?:[^\]]|\](?!\+?=))*)\](\+?)=", re.DOTALL)
_ATTRIBUTES = {"x": "exported", "r": "readonly", "i": "integer", "l": "lower", "u": "upper"}


class Builtins:
    """The commands, each as ``do_<name>(command, its expanded words, its assignments)``."""

    def __init__(self, path: str, state: State) -> None:
        self.path = path
        self.expander = Expander(state, self.captured)
        self.notes: list[str] = []
        self.input = Stream(None)
        self.guards: tuple[str, ...] = ()
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

    def note(self, line: int, text: str) -> None:
        """Record what was assumed at a line of the file that is followed now."""
        self.notes.append(f"{self.state.source}:{line}: {text}")

    # ---------------------------------------------------------------------------- assignments

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
        if a.append:
            old = self.expander.element(a.name, str(key), a.line) or EMPTY
            value = Field((*old.pieces, *value.pieces))
        self.state.put_element(a.name, key, value)

    def _array(self, a: Assignment, words: Sequence[Word]) -> Value:
        """The value of ``NAME=(…)``, with what it is added to."""
        former = self.state.value(a.name) if a.append else None
        keyed = [self._keyed(word) for word in words]
        if isinstance(self.state.value(a.name), Map):
            entries = dict(former.fields) if isinstance(former, Map) else {}
            for each in keyed:
                if each is not None:
                    entries[each[0]] = each[1]
            return Map(entries)
        plain = [former] if isinstance(former, Field) else []
        fields: list[Field | None] = list(former.fields) if isinstance(former, Array) else [*plain]
        for word, each in zip(words, keyed, strict=True):
            if each is None:
                fields += self.expander.fields(word)
                continue
            try:
                at = self.expander.count_text(each[0], a.line)
            except NotKnown as problem:
                return not_known(problem.unknown)
            fields += [None] * (min(at, 10_000) + 1 - len(fields))
            fields[min(at, 10_000)] = each[1]
        return Array(tuple(fields))

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

    # ------------------------------------------------------------------------------- commands

    def counting(self, text: Word) -> Status:
        """``(( … ))``."""
        try:
            return Status.of(self.expander.count(text) != 0)
        except NotKnown:
            for name in re.findall(r"([A-Za-z_]\w*)\s*(?:\+\+|--|[-+*/%&|^]?=(?!=))", _plain(text)):
                why = f"it is set by (({_plain(text).strip()[:40]})), whose value is not known"
                self.state.put(name, not_known(Unknown(name, why, text.line)))
            return Status.UNKNOWN

    def do_let(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        status = Status.UNKNOWN
        for word in words[1:]:
            try:
                if word.unknown is not None:
                    raise NotKnown(word.unknown)
                status = Status.of(self.expander.count_text(word.text, node.line) != 0)
            except NotKnown:
                status = Status.UNKNOWN
        return status

    def do_export(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        removes = any(w.text == "-n" for w in words[1:2])
        of_functions = any(w.text == "-f" for w in words[1:2])
        for a in assigned:
            self.assign(a)
        names = [w.text for w in words[1:] if not w.text.startswith("-")]
        names += [a.name for a in assigned]
        for assignment in [n for n in names if "=" in n]:
            # export "NAME=value", quoted entirely, or from a value.
            name, _, _ = assignment.partition("=")
            word = next(w for w in words if w.text == assignment)
            if _NAME.fullmatch(name):
                self.state.put(name, part_of(word, len(name) + 1))
                names.append(name)
        for name in [n for n in names if _NAME.fullmatch(n) and not of_functions]:
            self.state.mark(name, exported=not removes)
        return Status.YES

    def do_declare(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        command = words[0].text
        options = [w.text for w in words[1:] if re.fullmatch(r"[-+]\w+", w.text)]
        on = "".join(o[1:] for o in options if o[0] == "-")
        off = "".join(o[1:] for o in options if o[0] == "+")
        if "f" in on or "F" in on or "p" in on:
            return Status.YES
        inside = len(self.state.scopes) > 1
        local = inside and command in ("local", "declare", "typeset") and "g" not in on
        attributes = {name: True for key, name in _ATTRIBUTES.items() if key in on}
        attributes |= {name: False for key, name in _ATTRIBUTES.items() if key in off}
        locked = attributes.pop("readonly", False) or command == "readonly"
        bare = [w.text for w in words[1:] if w.text not in options]
        several = [(name, None) for name in bare] + [(a.name, a) for a in assigned]
        for text, assignment in several:
            name, _, rest = text.partition("=")
            if not _NAME.fullmatch(name):
                continue
            self._declare_one(name, assignment, on, attributes, local=local)
            if assignment is None and "=" in text:
                self.state.put(name, known(rest, node.line))
            if locked:
                self.state.mark(name, readonly=True)
        return Status.YES

    def _declare_one(
        self,
        name: str,
        assignment: Assignment | None,
        on: str,
        attributes: dict[str, bool],
        *,
        local: bool,
    ) -> None:
        scope = self.state.scopes[-1]
        if "n" in on and assignment is not None and isinstance(assignment.value, Word):
            target = self.expander.scalar(assignment.value)
            self.state.mark(name, local=local, refers=target.text)
            return
        # The value comes first: local X=$X reads the outer one.
        value = None
        if assignment is not None and isinstance(assignment.value, Word) and not assignment.index:
            value = self._value_of_declared(assignment, assignment.value, attributes)
        if local and name not in scope:
            given = name in self.state.given
            scope[name] = self.state.find(name) or Variable() if given else Variable()
        self.state.mark(name, local=local, **attributes)
        if "A" in on and not isinstance(self.state.value(name), Map):
            self.state.put(name, Map({}), scope=scope if local else None)
        elif "a" in on and self.state.value(name) is None:
            self.state.put(name, Array(()), scope=scope if local else None)
        if value is not None:
            # With its note, where the caller gave another value.
            if name in self.state.given and assignment is not None:
                self.assign(assignment)
            else:
                self.state.put(name, value, scope=scope if local else None)
        elif assignment is not None:
            self.assign(assignment)

    def _value_of_declared(self, a: Assignment, word: Word, attributes: dict[str, bool]) -> Field:
        if attributes.get("integer"):
            old = self.expander.look_up(a.name) if a.append else None
            return self._number(self.expander.scalar(word), old, a.line)
        return self._assigned(a, word)

    def do_unset(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names = [w.text for w in words[1:] if not w.text.startswith("-")]
        functions = any(w.text == "-f" for w in words[1:])
        for name in names:
            element = _ELEMENT.fullmatch(name)
            if element is not None:
                self._unset_element(element[1], element[2], node.line)
            elif functions or (self.state.find(name) is None and name in self.state.functions):
                self.state.functions.pop(name, None)
            elif any(w.text == "-n" for w in words[1:]):
                self.state.scope_of(name).pop(name, None)
            else:
                self.state.unset(name)
        return Status.YES

    def _unset_element(self, name: str, index: str, line: int) -> None:
        value = self.state.value(name)
        if index in ("@", "*"):
            self.state.unset(name)
            return
        try:
            key = self.expander.key_of(name, index, line)
        except NotKnown as problem:
            self.state.put(name, not_known(problem.unknown))
            return
        if isinstance(value, Map):
            self.state.put(name, Map({k: v for k, v in value.fields.items() if k != str(key)}))
        elif isinstance(value, Array):
            fields = list(value.fields)
            at = int(key)
            if -len(fields) <= at < len(fields):
                fields[at] = None
                while fields and fields[-1] is None:
                    fields.pop()
                self.state.put(name, Array(tuple(fields)))

    def do_set(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        rest = list(words[1:])
        long_names = {"a": "allexport", "e": "errexit", "u": "nounset", "o": "", "x": "xtrace"}
        while rest and re.fullmatch(r"[-+]\w+", rest[0].text):
            word = rest.pop(0).text
            on = word[0] == "-"
            names = [long_names.get(letter, letter) for letter in word[1:]]
            if "o" in word[1:] and rest:
                names.append(rest.pop(0).text)
            for name in filter(None, names):
                (self.state.options.add if on else self.state.options.discard)(name)
        if rest:
            marked = rest[0].text in ("--", "-")
            self.state.positional = list(rest[1:] if marked else rest)
            self.state.has_all_arguments = True
        return Status.YES

    def do_shopt(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        on = any(w.text == "-s" for w in words[1:])
        for word in words[1:]:
            if not word.text.startswith("-"):
                (self.state.options.add if on else self.state.options.discard)(word.text)
        return Status.YES

    def do_shift(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        count = words[1].text if len(words) > 1 else "1"
        by = int(count) if count.isdecimal() and len(count) < 5 else 1
        if by > len(self.state.positional):
            return Status.NO
        self.state.positional = self.state.positional[by:]
        return Status.YES

    def do_getopts(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        if len(words) < 3:
            return Status.NO
        wanted, name = words[1].text, words[2].text
        index = int(self.state.text("OPTIND", "1") or 1)
        if index > len(self.state.positional):
            self.state.put(name, known("?", node.line))
            return Status.NO
        word = self.state.positional[index - 1] or EMPTY
        option = word.text
        if not re.fullmatch(r"-\w.*", option, re.DOTALL):
            self.state.put(name, known("?", node.line))
            return Status.NO
        letter, rest = option[1], part_of(word, 2)
        takes = f"{letter}:" in wanted
        self.state.put(name, known(letter if letter in wanted else "?", node.line))
        if takes and not rest.text and index < len(self.state.positional):
            index += 1
            rest = self.state.positional[index - 1] or EMPTY
        if takes:
            self.state.put("OPTARG", rest)
        self.state.put("OPTIND", known(str(index + 1), node.line))
        return Status.YES

    def do_eval(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        return self.nested(words[1:], node.line)

    def do_read(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names, array, delimiter, raw = list[str](), "", "\n", False
        rest = words[1:]
        while rest:
            word = rest.pop(0)
            if not re.fullmatch(r"-\w+", word.text):
                names += [word.text] if _NAME.fullmatch(word.text) else []
                continue
            raw = raw or "r" in word.text
            last = word.text[-1]
            if last in "apdntNsiu" and last != "s" and rest:
                its = rest.pop(0)
                array = its.text if last == "a" else array
                delimiter = its.text[:1] if last == "d" else delimiter
        stream = self.input
        if node.inputs:
            stream = Stream(with_end(self.expander.scalar(node.inputs[-1])))
        found = stream.text is not None and bool(delimiter) and delimiter in stream.text.text
        row = stream.line(delimiter)
        if row is None or row.unknown is not None:
            at_end = stream.text is not None and row is None
            why = "it is read when the script runs"
            value: Field = EMPTY if at_end else not_known(Unknown(None, why, node.line))
            if row is not None and row.unknown is not None:
                value = row
            for name in names or ["REPLY"]:
                self.state.put(name, value)
            if array:
                self.state.put(array, value if value.unknown is not None else Array(()))
            return Status.NO if at_end else Status.UNKNOWN
        self._read_into(names, array, row if raw else _without_escapes(row))
        # Up to the end of its input, where it looks for what is not there.
        return Status.of(found)

    def _read_into(self, names: list[str], array: str, row: Field) -> None:
        separators = self.state.separators
        pieces = [piece._replace(quoted=False) for piece in row.pieces]
        if array:
            self.state.put(array, Array(tuple(split_into_fields(pieces, separators))))
            return
        if not names:
            self.state.put("REPLY", row)
            return
        blanks = "".join(char for char in BLANKS if char in separators)
        left = _stripped(row, blanks)
        for name in names[:-1]:
            text = left.text
            end = next((n for n, char in enumerate(text) if char in separators), len(text))
            self.state.put(name, part_of(left, 0, end))
            left = _stripped(part_of(left, end), blanks)
            if left.text[:1] and left.text[0] in separators:
                left = _stripped(part_of(left, 1), blanks)
        self.state.put(names[-1], left)

    def do_array(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names = [w.text for w in words[1:] if _NAME.fullmatch(w.text)]
        name = names[-1] if names else "MAPFILE"
        cut = any(re.fullmatch(r"-\w*t\w*", w.text) for w in words[1:])
        plain = all(re.fullmatch(r"-t", w.text) or w.text in names for w in words[1:])
        text = self.expander.scalar(node.inputs[-1]) if node.inputs else self.input.text
        if text is None or text.unknown is not None or not plain or node.reads:
            why = "it is read when the script runs"
            self.state.put(name, not_known(Unknown(name, why, node.line)))
            return Status.UNKNOWN
        stream, rows = Stream(text), list[Field]()
        while (row := stream.line()) is not None:
            rows.append(row if cut else Field((*row.pieces, *known("\n", node.line).pieces)))
        self.state.put(name, Array(tuple(rows)))
        return Status.YES

    def do_exit(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        kind = words[0].text
        argument = words[1].text if len(words) > 1 else ""
        status = Status.YES if not argument else Status.of(argument == "0")
        if not argument and kind in ("exit", "return"):
            last = self.expander.status
            status = Status.UNKNOWN if last is None else Status.of(last == 0)
        if len(words) > 1 and words[1].unknown is not None:
            status = Status.UNKNOWN
        levels = int(argument) if argument.isdecimal() and len(argument) < 3 else 1
        if kind in ("break", "continue"):
            if not self.loops:
                return Status.YES
            levels = min(levels, self.loops)
        raise Stop(kind, node.line, status, max(levels, 1), self.guards)

    def do_test(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        inside = [w for w in node.words[1:] if isinstance(w, Word)]
        if words[0].text == "[" and inside and inside[-1].literal == "]":
            inside = inside[:-1]
        return Status.of(evaluate_test(tuple(inside), self.expander, double=False))

    def do_printf(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        name = words[2].text if len(words) > 2 and words[1].text == "-v" else ""
        arguments = words[3:] if name else words[1:]
        if arguments and arguments[0].text == "--":
            arguments = arguments[1:]
        lacking = next((w.unknown for w in arguments if w.unknown is not None), None)
        text = None if lacking is not None else formatted([w.text for w in arguments])
        if text is None:
            why = "printf's format is not followed"
            value = not_known(lacking or Unknown(None, why, node.line))
        else:
            value = known(text, node.line)
        if not name:
            self.printed(value)
        elif (element := _ELEMENT.fullmatch(name)) is not None:
            self.state.put_element(
                element[1], int(element[2]) if element[2].isdecimal() else element[2], value
            )
        else:
            self.state.put(name, value)
        return Status.YES

    def printed(self, value: Field) -> None:
        """What a command prints, for a substitution or the next command of a pipeline."""
        raise NotImplementedError

    def do_trap(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        if len(words) > 2 and re.search(r"\w\+?=|(?<![\w-])--\w|\w+", words[1].text):
            self.note(node.line, f"trap {words[1].text[:40]!r} is not followed")
        return Status.YES

    def do_true(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        return Status.YES

    def do_false(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        return Status.NO


def with_end(value: Field) -> Field:
    """The text of a heredoc, or of ``<<<``, which gets a line's end."""
    if value.text.endswith("\n"):
        return value
    return Field((*value.pieces, Piece("\n", value.line)))


def _plain(text: Word) -> str:
    return "".join(str(getattr(part, "text", "")) for part in text.parts)


def _stripped(value: Field, blanks: str) -> Field:
    """A value without blanks at its ends."""
    text = value.text
    start = len(text) - len(text.lstrip(blanks)) if blanks else 0
    end = len(text.rstrip(blanks)) if blanks else len(text)
    return part_of(value, start, max(start, end))


def _without_escapes(row: Field) -> Field:
    if "\\" not in row.text:
        return row
    return Field(tuple(p._replace(text=re.sub(r"\\(.)", r"\1", p.text)) for p in row.pieces))


BUILTINS = {
    "export": "export",
    "declare": "declare",
    "local": "declare",
    "readonly": "declare",
    "typeset": "declare",
    "unset": "unset",
    "set": "set",
    "shopt": "shopt",
    "shift": "shift",
    "getopts": "getopts",
    "source": "source",
    ".": "source",
    "eval": "eval",
    "let": "let",
    "read": "read",
    "mapfile": "array",
    "readarray": "array",
    "exit": "exit",
    "return": "exit",
    "break": "exit",
    "continue": "exit",
    "[": "test",
    "test": "test",
    "printf": "printf",
    "trap": "trap",
    ":": "true",
    "true": "true",
    "false": "false",
    "cd": "cd",
    "pushd": "cd",
    "popd": "popd",
    "pwd": "pwd",
    "echo": "echo",
}
"""The method of each command."""

__all__ = ["BUILTINS", "Builtins", "ReadOnly", "Status", "Stop", "Stream"]
