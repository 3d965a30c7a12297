"""Reads the expansions of a shell script: ``$A``, ``${A…}``, ``$(…)``, ``$((…))``, backticks."""

from __future__ import annotations

import re

from overlapkit.config.shell.grammar.position import ENDS_WORD, Position
from overlapkit.config.shell.grammar.syntax import (
    Arithmetic,
    Command,
    CommandList,
    Parameter,
    Part,
    Text,
    Word,
)
from overlapkit.errors import InputError

_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
_BRACED = re.compile(r"(?P<prefix>[!#](?=[\w@*])|!(?=#\}))?(?P<name>[A-Za-z_]\w*|\d+|[@*#?$!-])")
_OPERATOR = re.compile(r":[-=+?]|[-=+?]|%%|%|##|#|//|/[#%]?|,,|,|\^\^|\^|:|@[QUuLEPAaKk](?=\})")
MOST_ATTEMPTS = 50
"""Command substitutions whose commands cannot be parsed, in one script."""


class ExpansionReader(Position):
    """Expansions at the current position."""

    def word(self, ends: frozenset[str] = ENDS_WORD, *, quoted: bool = False) -> Word:
        """The word that begins here."""
        raise NotImplementedError

    def quoted_parts(self, until: str | None) -> list[Part]:
        """Parts up to a closing quote."""
        raise NotImplementedError

    def _expansion(self, *, quoted: bool) -> Part | None:
        """What ``$`` or a backtick begins here; None where it is an ordinary character."""
        line = self.line
        if self.text[self.at] == "`":
            end = re.compile(r"`((?:[^`\\]|\\.)*)`", re.DOTALL).match(self.text, self.at)
            if end is None:
                raise self.problem("a ` is not closed", line)
            self.at = end.end()
            text = re.sub(r"\\([$`\\])", r"\1", end[1])
            return Command(text, line, quoted, self.commands_in(text, line))
        if self.text.startswith("$((", self.at):
            start = self.at
            self.at += 1
            content = self.counting()
            if content is not None:
                return Arithmetic(content, line, quoted)
            self.at = start
        if self.text.startswith("$[", self.at):
            self.at += 2
            start = self.at
            return Arithmetic(self.expression(self.closing("[", "]"), start), line, quoted)
        if self.text.startswith("$(", self.at):
            self.at += 2
            return self.substitution(line, quoted)
        if self.text.startswith("${", self.at):
            self.at += 2
            return self._braced(line, quoted)
        found = _NAME.match(self.text, self.at + 1)
        if found is None:
            return None
        self.at = found.end()
        return Parameter(found[0], line, quoted)

    def _braced(self, line: int, quoted: bool) -> Parameter:
        found = _BRACED.match(self.text, self.at)
        if found is None:
            # Such as zsh's ${(M)A}: an error only where it is expanded.
            rest = Text(self.closing("{", "}"), line, True)
            return Parameter("", line, quoted, "other", Word((rest,), line))
        name, prefix = found["name"], found["prefix"]
        self.at = found.end()
        index = ""
        if self.text.startswith("[", self.at):
            self.at += 1
            index = self.closing("[", "]")
        indirect = prefix == "!"
        if indirect and index in ("@", "*"):
            self.expect_closed(line)
            return Parameter(name, line, quoted, "keys", None, index)
        if indirect and self.text[self.at : self.at + 2] in ("@}", "*}"):
            index, self.at = self.text[self.at], self.at + 2
            return Parameter(name, line, quoted, "names", None, index)
        if prefix == "#":
            self.expect_closed(line)
            return Parameter(name, line, quoted, "length", None, index)
        if self.text.startswith("}", self.at):
            self.at += 1
            return Parameter(name, line, quoted, "", None, index, indirect=indirect)
        sign = _OPERATOR.match(self.text, self.at)
        if sign is None:
            rest = Text(self.closing("{", "}"), line, True)
            return Parameter(name, line, quoted, "other", Word((rest,), line), index)
        self.at = sign.end()
        operator, second = sign[0], None
        if operator.startswith("@"):
            argument = Word((Text(operator[1:], line, True),), line)
            operator = "@"
        elif operator.startswith("/"):
            argument = self.word(frozenset("/}"))
            if self.text.startswith("/", self.at):
                self.at += 1
                second = self.word(frozenset("}"))
        elif operator == ":":
            start = self.at
            argument = self.expression(self.closing_of_part(), start)
            if self.text.startswith(":", self.at):
                self.at += 1
                start = self.at
                second = self.expression(self.closing_of_part(), start)
        else:
            takes_word = operator.lstrip(":") in ("-", "=", "+", "?")
            argument = self.word(frozenset("}"), quoted=quoted and takes_word)
        self.expect_closed(line)
        return Parameter(name, line, quoted, operator, argument, index, second, indirect)

    def expect_closed(self, line: int) -> None:
        if not self.text.startswith("}", self.at):
            raise self.problem("a ${ is not closed", line)
        self.at += 1

    def closing_of_part(self) -> str:
        """The text of an offset or a length in ``${A:1:2}``, up to the colon or brace after it."""
        start, depth = self.at, 0
        while self.at < len(self.text):
            char = self.text[self.at]
            if depth == 0 and char in ":}":
                break
            depth += (char in "({") - (char in ")}")
            self.at += 1
        return self.text[start : self.at]

    def expression(self, text: str, start: int) -> Word:
        """A text in which only ``$`` and backticks are special, such as an arithmetic one."""
        inner = type(self)(text, self.path, lambda offset: self.line_of(start + offset))
        inner.depth, inner.attempts = self.depth, self.attempts
        word = Word(tuple(inner.quoted_parts(until=None)), self.line_of(start))
        self.attempts = inner.attempts
        return word

    def substitution(self, line: int, quoted: bool) -> Command:
        """A ``$(…)`` whose beginning has been read."""
        start, depth, pending = self.at, self.depth, list(self._pending)
        if self.attempts < MOST_ATTEMPTS:
            try:
                body = self.commands_until(")")
                return Command(self.text[start : self.at - 1], line, quoted, body)
            except InputError:
                self.attempts += 1
                self.at, self.depth, self._pending = start, depth, pending
        return Command(self.closing("(", ")"), line, quoted)

    def commands_until(self, closer: str) -> CommandList:
        """The commands up to a closing bracket, which is read too."""
        raise NotImplementedError

    def commands_in(self, text: str, line: int) -> CommandList | None:
        """The commands of a text; None where it cannot be parsed."""
        raise NotImplementedError

    def counting(self) -> Word | None:
        """The text of ``((…))``, which is read; None, nothing read, where it is not arithmetic."""
        start, line = self.at, self.line
        self.at += 2
        try:
            content = self.closing("(", ")")
        except InputError:
            raise self.problem("a (( is not closed", line) from None
        if not self.text.startswith(")", self.at):
            self.at = start
            return None
        self.at += 1
        return self.expression(content, start + 2)

    def closing(self, opens: str, closes: str) -> str:
        """The text up to the closing bracket, which is read too; quotes are respected."""
        start, line, depth = self.at, self.line, 1
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\\":
                self.at += 1
            elif char == "'" and (end := self.text.find("'", self.at + 1)) >= 0:
                self.at = end
            elif char == '"':
                self.at += 1
                self.quoted_parts(until='"')
                continue
            elif char == opens:
                depth += 1
            elif char == closes:
                depth -= 1
                if depth == 0:
                    self.at += 1
                    return self.text[start : self.at - 1]
            self.at += 1
        raise self.problem(f"a {opens} is not closed", line)
