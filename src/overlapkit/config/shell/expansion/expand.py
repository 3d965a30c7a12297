"""Expands parameters, ``$A`` and ``${A…}``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from overlapkit.config.shell.commands.status import Status, Stop
from overlapkit.config.shell.expansion.patterns import LONGEST
from overlapkit.config.shell.expansion.transformations import TRANSFORMED, removed, replaced
from overlapkit.config.shell.expansion.words import NotKnown, Words
from overlapkit.config.shell.grammar.syntax import Parameter, Text, Word
from overlapkit.config.shell.grammar.words import WordReader
from overlapkit.config.shell.state import ARGUMENTS, is_all_arguments
from overlapkit.config.shell.values import (
    EMPTY,
    Array,
    Field,
    Map,
    Piece,
    Unknown,
    Value,
    fields_of,
    known,
    not_known,
    part_of,
    split_into_fields,
)

_BY_SLURM = ("SLURM_", "SLURMD_")
_BY_BASH = frozenset(
    {"RANDOM", "SRANDOM", "SECONDS", "EPOCHSECONDS", "EPOCHREALTIME", "HOSTNAME", "HOSTTYPE"}
    | {"OSTYPE", "MACHTYPE", "UID", "EUID", "PPID", "GROUPS", "SHELL", "SHLVL", "SHELLOPTS", "_"}
    | {"BASH", "BASHPID", "BASHOPTS", "BASH_COMMAND", "BASH_LINENO", "BASH_SUBSHELL", "BASH_ARGV"}
    | {"BASH_VERSION", "BASH_VERSINFO", "COPROC", "DIRSTACK", "PIPESTATUS", "HOME", "USER", "PATH"}
)
"""Variables that have a value wherever a script runs: bash's manual, "Bash Variables", and those of
every login."""
_TO_WORD = (":-", "-", ":=", "=", ":+", "+", ":?", "?")


class Expander(Words):
    """Expansions on a state."""

    def unset_one(self, name: str, line: int) -> Unknown:
        """Why a variable that nothing sets is not known."""
        name = self.as_given(name)
        if name in self.state.deciders:
            decider = self.state.deciders[name][0]
            why = f"it decides what {name} is, and is not set in the script"
            return Unknown(decider, why, line, unset=not self.state.unread)
        if self.state.unread and not name.isdecimal():
            return Unknown(name, self.state.unread, line)
        if "nounset" in self.state.options:
            self.demand(name, line, "set -u")
            return Unknown(name, "it is not set in the script", line)
        return Unknown(name, "it is not set in the script", line, unset=True)

    def as_given(self, name: str) -> str:
        """A variable's name; an argument's number as the caller counts it."""
        return str(int(name[:6]) + self.state.shifted) if name.isdecimal() else name

    def demand(self, name: str, line: int, what: str) -> None:
        """Note that a variable has to be set before the script starts."""
        if not name.startswith(_BY_SLURM):
            text = f"{name} is not set in the script, and {what} would end it here"
            self.note(line, f"{text}: taken as set before it starts")

    def needed(self, name: str, line: int) -> None:
        """Where ``set -u`` ends the script because a variable certainly has no value.

        Raises:
            Stop: it does.
        """
        if "nounset" in self.state.options:
            self.note(line, f"{name} has no value: set -u ends the script here")
            raise Stop("exit", line, Status.NO, code=1)

    def look_up(self, name: str) -> Field | None:
        """A variable's value as one text; None where it is not set."""
        state = self.state
        if name.isdecimal():
            number = int(name[:6])
            if number == 0:
                return Field((Piece(state.name or state.path, 0),))
            inside = number <= len(state.positional)
            return state.positional[number - 1] if inside else None
        if name == "PWD" and state.folder is not None and state.value(name) is None:
            return known(state.folder, 0)
        if name == "BASH_SOURCE":
            return known(state.source, 0)
        value = state.value(name)
        if value is None and name in _BY_BASH:
            return not_known(Unknown(name, "bash sets it where the script runs", 0))
        if isinstance(value, Array):
            return value.fields[0] if value.fields else None
        if isinstance(value, Map):
            return value.fields.get("0")
        return value

    def element(self, name: str, index: str | None, line: int) -> Field | None:
        """An element of an array, or a plain variable.

        Raises:
            NotKnown: the index is not known.
        """
        self.note_read(name)
        value = self.state.value(name)
        if name == "LINENO":
            return known(str(line), line)
        if name == "FUNCNAME":
            value = Array(tuple(known(each, line) for each in self.state.called))
        by_bash = value is None and name in _BY_BASH
        if index is None or by_bash or (not isinstance(value, (Array, Map)) and index == "0"):
            if name == "FUNCNAME":
                return next(iter(fields_of(value)), None)
            return self.look_up(name)
        if isinstance(value, Map):
            return value.fields.get(index)
        if index in ("@", "*"):
            return self.look_up(name)
        if name == "BASH_SOURCE":
            return self.look_up(name)
        if isinstance(value, Field) and value.unknown is not None:
            # Any of its elements may be there.
            return value
        at = self.count_text(index, line)
        fields = value.fields if isinstance(value, Array) else fields_of(value)
        return fields[at] if -len(fields) <= at < len(fields) else None

    def key_of(self, name: str, index: str, line: int) -> int | str:
        """What the text in brackets means for a variable: a key, or a number.

        Raises:
            NotKnown: it is not known.
        """
        word = self.index_word(index, line)
        if isinstance(self.state.value(name), Map):
            if word.unknown is not None:
                raise NotKnown(word.unknown)
            return word.text
        if word.unknown is not None:
            raise NotKnown(word.unknown)
        return self.count_text(word.text, line)

    def index_word(self, index: str, line: int) -> Field:
        """The text in brackets after expansion, without its quotes."""
        reader = WordReader(index, self.state.path, lambda _: line)
        return self.scalar(reader.word(frozenset()))

    def _parameter(self, p: Parameter) -> Iterator[Piece | None]:
        if not p.name:
            written = (p.argument.literal if p.argument is not None else None) or ""
            why = f"${{{written[:40]}}} is no expansion of bash"
            yield Piece("", p.line, p.quoted, Unknown(None, why, p.line))
            return
        if p.indirect:
            count = known(str(len(self.state.positional)), p.line)
            found = count if p.name == "#" else self.look_up(p.name)
            meant = self.state.target(p.name)
            if meant != p.name:
                yield Piece(meant, p.line, p.quoted)
                return
            if found is None or found.unknown is not None or not found.text:
                yield self._lacking(p, found)
                return
            name, _, index = found.text.partition("[")
            p = replace(p, name=name, index=index.rstrip("]") or p.index, indirect=False)
        if p.operator == "names":
            names = sorted(name for name in self.state.every() if name.startswith(p.name))
            listed = [known(name, p.line) for name in names]
            yield from self._several(listed, replace(p, name="", index=p.index))
            return
        several = self._list(p)
        if several is not None:
            yield from self._of_list(p, several)
            return
        if p.name in "?$!-" or (p.name == "#" and not p.operator):
            yield self._special(p)
            return
        try:
            found = self.element(p.name, self._index(p), p.line)
        except NotKnown as problem:
            yield Piece("", p.line, p.quoted, problem.unknown)
            return
        nothing = True
        for piece in self._operated(p, found):
            nothing = False
            yield piece
        if nothing and p.quoted:
            yield Piece("", p.line, True)

    def _index(self, p: Parameter) -> str | None:
        if not p.index:
            return None
        word = self.index_word(p.index, p.line)
        if word.unknown is not None:
            raise NotKnown(word.unknown)
        return word.text

    def _list(self, p: Parameter) -> list[Field] | None:
        """The elements that ``@`` or ``*`` names; None for a single value."""
        if p.name in ("@", "*"):
            several = [
                not_known(self.unset_one(str(n), p.line)) if value is None else value
                for n, value in enumerate(self.state.positional, start=1)
            ]
            if self.state.open_at is not None and not p.operator:
                why = "the script's own arguments are not given"
                own = not_known(Unknown(ARGUMENTS, why, p.line, unset=True))
                several.insert(self.state.open_at, own)
            return several
        if p.index not in ("@", "*"):
            return None
        self.note_read(p.name)
        value = self.state.value(p.name)
        if value is None and p.name in _BY_BASH:
            return [not_known(Unknown(p.name, "bash sets it where the script runs", p.line))]
        if value is None:
            default = p.operator.lstrip(":")[:1] in ("-", "=", "+", "?") or p.operator == "length"
            if not default:
                self.unset.append(p.name)
                if p.operator == "" or self.state.unread:
                    return [not_known(replace(self.unset_one(p.name, p.line), several=True))]
            return []
        if isinstance(value, Field) and p.name in self.state.given:
            # A caller can give no array, only its words.
            return split_into_fields(piece._replace(quoted=False) for piece in value.pieces)
        if isinstance(value, Field) and value.unknown is not None:
            return [not_known(replace(value.unknown, several=True))]
        return list(fields_of(value))

    def _of_list(self, p: Parameter, several: list[Field]) -> Iterator[Piece | None]:
        operator = p.operator
        lacking = next((f.unknown for f in several if f.unknown is not None), None)
        if operator == "length":
            if lacking is not None:
                yield Piece("", p.line, p.quoted, lacking)
            else:
                yield Piece(str(len(several)), p.line, p.quoted)
            return
        if operator == "keys":
            value = self.state.value(p.name)
            several = [known(str(key), p.line) for key in _keys(value)]
        elif operator in _TO_WORD:
            # With a colon, one empty word counts as none.
            empty = not several or (operator.startswith(":") and _is_blank(several))
            if operator.endswith("+"):
                yield from () if empty else self._argument(p)
            elif empty and not operator.endswith("?"):
                yield from self._argument(p)
            else:
                yield from self._several(several, replace(p, index=p.index or p.name))
            return
        elif operator == ":":
            first = known(self.state.name or self.state.path, 0)
            counted: list[Field | None] = list(several)
            value = self.state.value(p.name)
            if p.name in ("@", "*"):
                counted = [first, *several]
            elif isinstance(value, Array):
                # The start is an index, and the count is of what is set from there on.
                counted = list(value.fields)
            part = self._part(p, len(counted))
            if isinstance(part, Unknown):
                yield Piece("", p.line, p.quoted, part)
                return
            rest = [field for field in counted[part[0] :] if field is not None]
            several = rest[: part[1] - part[0]]
        elif operator:
            changed = [self._changed(p, each) for each in several]
            several = [Field((piece,)) for piece in changed]
        yield from self._several(several, replace(p, index=p.index or p.name))

    def _several(self, fields: list[Field], p: Parameter) -> Iterator[Piece | None]:
        joined = p.quoted and (p.index == "*" or p.name == "*")
        if joined and not fields:
            yield Piece("", p.line, True)
        for number, field in enumerate(fields):
            self._spend(0)
            if number:
                yield Piece(self.state.separators[:1], p.line, True) if joined else None
            if p.quoted and (not field.pieces or (joined and is_all_arguments(field))):
                # "$*" is a word even without arguments, "$@" is not.
                yield Piece("", p.line, True)
            yield from self._counted(field.pieces, quoted=p.quoted)

    def _special(self, p: Parameter) -> Piece:
        if p.name == "#":
            if not self.state.has_all_arguments:
                # There may be more of them than the caller gave.
                count = len(self.state.positional) + self.state.shifted
                self.unset.append(str(count + 1))
            return Piece(str(len(self.state.positional)), p.line, p.quoted)
        if p.name == "?" and self.status is not None:
            return Piece(str(self.status), p.line, p.quoted)
        unknown = Unknown(None, f"${p.name} is known only to the running shell", p.line)
        return Piece("", p.line, p.quoted, unknown)

    def _lacking(self, p: Parameter, found: Field | None) -> Piece:
        if found is not None and found.unknown is not None:
            return Piece("", p.line, p.quoted, found.unknown)
        if self.state.find(p.name) is not None or self._is_no_argument(p.name):
            # Declared without a value, as by local: certainly empty.
            self.needed(p.name, p.line)
            return Piece("", p.line, p.quoted)
        lacking = self.unset_one(p.name, p.line)
        self.unset.append(lacking.name or p.name)
        return Piece("", p.line, p.quoted, lacking)

    def _is_no_argument(self, name: str) -> bool:
        return name.isdecimal() and self.state.has_all_arguments

    def _operated(self, p: Parameter, found: Field | None) -> Iterator[Piece | None]:
        operator = p.operator
        maybe = found is None and bool(self.state.unread)
        if operator in ("?", ":?"):
            found = self._required(p, found)
        if operator in _TO_WORD and operator.lstrip(":") != "?":
            # A value that comes from a variable that nothing sets is empty as well.
            empty = found is None or (
                not found.text and all(p.unknown is None or p.unknown.unset for p in found.pieces)
            )
            missing = empty if operator.startswith(":") else found is None
            if operator.endswith("+"):
                if not missing:
                    yield from self._argument(p)
                elif maybe:
                    yield self._lacking(p, found)
                return
            if missing:
                if found is None:
                    self.unset.append(self.as_given(p.name))
                    if maybe and not p.name.isdecimal() and p.argument and p.argument.parts:
                        self.state.defaulted.setdefault(p.name, self.state.unread)
                yield from self._argument(p)
                if operator.endswith("=") and p.argument is not None:
                    self.state.put(p.name, self.scalar(p.argument))
                return
        elif found is None:
            yield self._lacking(p, found)
            return
        elif operator == "length":
            length = None if found.unknown is not None else str(len(found.text))
            yield Piece(length or "", p.line, p.quoted, found.unknown)
            return
        assert found is not None
        if found.unknown is not None or operator in ("", *_TO_WORD):
            yield from self._counted(found.pieces, quoted=p.quoted)
        elif operator == ":":
            part = self._part(p, len(found.text))
            if isinstance(part, Unknown):
                yield Piece("", p.line, p.quoted, part)
            else:
                yield from self._counted(part_of(found, *part).pieces, quoted=p.quoted)
        else:
            yield self._changed(p, found)

    def _required(self, p: Parameter, found: Field | None) -> Field:
        """A value that ``${A:?}`` needs.

        Raises:
            Stop: there certainly is none.
        """
        blank = found is not None and not found.text and found.unknown is None
        if found is not None and not (blank and p.operator == ":?"):
            return found
        if found is None and self.state.find(p.name) is None and not self._is_no_argument(p.name):
            self.unset.append(p.name)
            self.demand(p.name, p.line, f"${{{p.name}{p.operator}}}")
            return not_known(replace(self.unset_one(p.name, p.line), unset=False))
        self.note(p.line, f"{p.name} has no value: ${{{p.name}{p.operator}}} ends the script here")
        raise Stop("exit", p.line, Status.NO, code=1)

    def _argument(self, p: Parameter) -> Iterator[Piece | None]:
        """The word after ``:-``; only its quoted parts are quoted, unless the whole is."""
        assert p.argument is not None
        for part in p.argument.parts:
            if isinstance(part, Text):
                quoted = p.quoted or part.quoted
                yield Piece(part.text, part.line, quoted, file=self._file())
                continue
            for piece in self._pieces(Word((part,), p.line)):
                if piece is None:
                    yield Piece(" ", p.line, True) if p.quoted else None
                else:
                    yield piece._replace(quoted=piece.quoted or p.quoted)

    def _part(self, p: Parameter, length: int) -> tuple[int, int] | Unknown:
        """Start and end of ``${A:start:count}`` in `length` characters or elements."""
        assert p.argument is not None
        try:
            start = self.count(p.argument)
            count = None if p.second is None else self.count(p.second)
        except NotKnown as problem:
            return problem.unknown
        # From before the first character there is nothing.
        start = length if start < -length else length + start if start < 0 else min(start, length)
        if count is None:
            return start, length
        end = length + count if count < 0 else start + count
        return start, max(start, min(end, length))

    def _changed(self, p: Parameter, found: Field) -> Piece:
        """A value with a part removed or replaced, in another case, or quoted."""
        if found.unknown is not None:
            return Piece("", p.line, p.quoted, found.unknown)
        result = self._result(p, found.text)
        if isinstance(result, Unknown):
            return Piece("", p.line, p.quoted, result)
        return Piece(result, found.line, p.quoted, file=found.file)

    def _result(self, p: Parameter, text: str) -> str | Unknown:
        operator = p.operator
        if operator == "@" and p.argument is not None:
            kind = p.argument.literal or ""
            if kind in TRANSFORMED:
                return TRANSFORMED[kind](text)
        elif p.argument is not None and operator != "other" and len(text) <= LONGEST:
            pattern = self.pattern(p.argument)
            if isinstance(pattern, Unknown):
                return pattern
            if operator[0] in "#%":
                return removed(text, operator, pattern)
            if operator[0] == "/":
                new = EMPTY if p.second is None else self.scalar(p.second)
                if new.unknown is not None:
                    return new.unknown
                result = replaced(text, operator, pattern, new.text)
                if result != text and "&" in new.text:
                    # bash 5.2: the text that matched; before: a plain character.
                    why = "an & in the new text of a replacement depends on bash's version"
                    return Unknown(None, why, p.line)
                return result
            if operator[0] in ",^":
                every = not p.argument.parts
                change = str.lower if operator[0] == "," else str.upper
                chars = [change(c) if every or pattern.matches(c) else c for c in text]
                return "".join(chars if len(operator) == 2 else [*chars[:1], *text[1:]])
        return Unknown(None, f"${{{p.name}…}} has an operator that is not followed", p.line)


def _is_blank(several: list[Field]) -> bool:
    return len(several) == 1 and several[0].unknown is None and not several[0].text


def _keys(value: Value | None) -> list[str]:
    """The keys or indices of an array that are set."""
    if isinstance(value, Map):
        return value.keys
    if isinstance(value, Array):
        return [str(n) for n, field in enumerate(value.fields) if field is not None]
    return [] if value is None else ["0"]
