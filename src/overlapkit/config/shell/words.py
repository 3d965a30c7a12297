"""Reads the words of a shell script: quotes, expansions, comments, heredocs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from overlapkit.config.shell.syntax import (
    Arithmetic,
    Command,
    Parameter,
    Part,
    Simple,
    Text,
    Word,
)
from overlapkit.errors import InputError

MAX_DEPTH = 60
"""Nesting of commands, quotes and expansions; launch scripts stay below ten."""

_ENDS_WORD = frozenset(" \t\n;&|<>()")
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
_BRACED = re.compile(r"(?P<prefix>[!#](?=[\w@*]))?(?P<name>[A-Za-z_]\w*|\d+|[@*#?$!-])")
_OPERATOR = re.compile(r":[-=+?]|[-=+?]|%%|%|##|#|//|/|,,|,|\^\^|\^|:|@")
_WITH_WORD = frozenset({":-", "-", ":=", "=", ":+", "+", ":?", "?", "%", "%%", "#", "##"})
_CASES = frozenset({",,", ",", "^^", "^"})
_ESCAPED_IN_QUOTES = '$`"\\'
_ANSI = {"n": "\n", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


class WordReader:
    """A position in a script, and reading words from it."""

    def __init__(self, text: str, path: str, line_of: Callable[[int], int]) -> None:
        self.text = text
        self.path = path
        self.line_of = line_of
        self.at = 0
        self.depth = 0
        self._pending: list[tuple[str, bool, bool]] = []
        self._bodies: list[Word] = []

    @property
    def line(self) -> int:
        """The line of the current position."""
        return self.line_of(self.at)

    def problem(self, message: str, line: int | None = None) -> InputError:
        """The error to raise for a problem here."""
        return InputError(f"{self.path}:{line or self.line}: cannot be read as a script: {message}")

    def deeper(self) -> None:
        """Add one level of nesting; the caller subtracts it.

        Raises:
            InputError: there are too many levels.
        """
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.problem("nested too deeply for a launch script")

    def ends_word(self, at: int) -> bool:
        return at >= len(self.text) or self.text[at] in _ENDS_WORD

    def peek_word(self) -> str:
        """The plain word that comes next, without reading it."""
        at = self.at
        while not self.ends_word(at):
            at += 1
        return self.text[self.at : at]

    def expect(self, what: str) -> None:
        self.skip_blanks()
        if not self.text.startswith(what, self.at):
            raise self.problem(f"{what!r} is missing")
        self.at += len(what)

    def skip_blanks(self) -> None:
        """Skip blanks, continued lines and a comment."""
        text = self.text
        while self.at < len(text):
            if text[self.at] in " \t\r":
                self.at += 1
            elif text.startswith(("\\\n", "\\\r\n"), self.at):
                self.at = text.index("\n", self.at) + 1
            elif text[self.at] == "#" and (self.at == 0 or text[self.at - 1] in " \t\n;&|()`\r"):
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
            else:
                return

    def skip_lines(self) -> None:
        """Skip blanks, comments and line ends."""
        self.skip_blanks()
        while self.at < len(self.text) and self.text[self.at] == "\n":
            self.newline()
            self.skip_blanks()

    def skip_separators(self) -> None:
        """Skip what can be between a loop's head and its body."""
        self.skip_lines()
        while self.at < len(self.text) and self.text[self.at] == ";":
            self.at += 1
            self.skip_lines()

    # ------------------------------------------------------------------------------- heredocs

    def pending_heredoc(self, *, strip_tabs: bool) -> None:
        """Read a heredoc's delimiter; its text is read at the end of the line."""
        quoted = self.text[self.at : self.at + 1] in ("'", '"', "\\")
        delimiter = self.word().literal
        if delimiter is None:
            raise self.problem("a heredoc's delimiter is not plain text")
        self._pending.append((delimiter, quoted, strip_tabs))

    def with_heredocs(self, command: Simple) -> Simple:
        """A command with the text of its heredocs, which is read before the rest of the line."""
        if not self._pending:
            return command
        end = self.text.find("\n", self.at)
        if end < 0:
            raise self.problem(f"the heredoc {self._pending[0][0]} has no text")
        rest = self.at
        self.at = end + 1
        for delimiter, quoted, strip_tabs in self._pending:
            self._bodies.append(self._heredoc(delimiter, quoted, strip_tabs))
        self._pending.clear()
        bodies, self._bodies = self._bodies, []
        self._after_line = self.at
        self._line_end = end
        self.at = rest
        return replace(command, inputs=(*command.inputs, *bodies))

    _line_end = -1
    _after_line = -1

    def newline(self) -> None:
        """Read a line's end, and skip the heredocs that begin after it."""
        self.at = self._after_line if self.at == self._line_end else self.at + 1

    def _heredoc(self, delimiter: str, quoted: bool, strip_tabs: bool) -> Word:
        start = self.at
        line = self.line
        while True:
            end = self.text.find("\n", self.at)
            row = self.text[self.at : len(self.text) if end < 0 else end].rstrip("\r")
            if (row.lstrip("\t") if strip_tabs else row) == delimiter:
                body, self.at = self.text[start : self.at], len(self.text) if end < 0 else end + 1
                break
            if end < 0:
                raise self.problem(f"the heredoc {delimiter} has no end", line)
            self.at = end + 1
        if quoted:
            return Word((Text(body, line, True),), line)
        base = start
        inner = type(self)(body, self.path, lambda offset: self.line_of(base + offset))
        inner.depth = self.depth
        return Word(tuple(inner.quoted_parts(until=None)), line)

    # ---------------------------------------------------------------------------------- words

    def word(self, ends: frozenset[str] = _ENDS_WORD, *, quoted: bool = False) -> Word:
        """The word that begins here; empty where none does.

        Args:
            ends: characters that end it where they are not quoted.
            quoted: whether it is entirely in quotes, as is a default in ``"${A:-b c}"``.
        """
        self.deeper()
        line, parts, buffer = self.line, list[Part](), list[str]()
        begun = line

        def flush() -> None:
            if buffer:
                parts.append(Text("".join(buffer), begun, quoted))
                buffer.clear()

        while self.at < len(self.text) and self.text[self.at] not in ends:
            char = self.text[self.at]
            if char == "\\":
                flush()
                following = self.text[self.at + 1 : self.at + 2]
                self.at += 2
                if following not in ("", "\n"):
                    parts.append(Text(following, self.line, True))
            elif (special := self._special(quoted=quoted)) is not None:
                flush()
                parts += special
            else:
                buffer.append(char)
                self.at += 1
                if char == "\n":
                    flush()
            if not buffer:
                begun = self.line
        flush()
        self.depth -= 1
        return Word(tuple(parts), line)

    def _special(self, *, quoted: bool) -> list[Part] | None:
        """The parts of a quote or an expansion that begins here; None for an ordinary character."""
        char = self.text[self.at]
        if char == "'" and not quoted:
            return [self._single_quoted()]
        if char == '"' or self.text.startswith('$"', self.at):
            self.at += 1 if char == '"' else 2
            opened = self.line
            return self.quoted_parts(until='"') or [Text("", opened, True)]
        if self.text.startswith("$'", self.at) and not quoted:
            return [self._ansi_quoted()]
        if char in "$`" and (expansion := self._expansion(quoted=quoted)) is not None:
            return [expansion]
        return None

    def test_word(self) -> Word:
        """A word or operator of ``[[ ]]``, where < > ( ) & | are ordinary characters."""
        line = self.line
        for operator in ("&&", "||", "(", ")", "<", ">"):
            if self.text.startswith(operator, self.at):
                self.at += len(operator)
                return Word((Text(operator, line, False),), line)
        return self.word(frozenset(" \t\n"))

    def _single_quoted(self) -> Text:
        line = self.line
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise self.problem("a ' is not closed", line)
        content, self.at = self.text[self.at + 1 : end], end + 1
        return Text(content, line, True)

    def _ansi_quoted(self) -> Text:
        line = self.line
        found = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL).match(self.text, self.at)
        if found is None:
            raise self.problem("a $' is not closed", line)
        self.at = found.end()
        text = re.sub(r"\\(.)", lambda m: _ANSI.get(m[1], m[0]), found[1], flags=re.DOTALL)
        return Text(text, line, True)

    def quoted_parts(self, until: str | None) -> list[Part]:
        """Parts up to a closing quote, which is read too, or to the end of a heredoc's text."""
        self.deeper()
        opened, parts, buffer = self.line, list[Part](), list[str]()
        begun = opened

        def flush() -> None:
            if buffer:
                parts.append(Text("".join(buffer), begun, True))
                buffer.clear()

        while True:
            if self.at >= len(self.text):
                if until is not None:
                    raise self.problem(f"a {until} is not closed", opened)
                break
            char = self.text[self.at]
            if char == until:
                self.at += 1
                break
            if not buffer:
                begun = self.line
            if char == "\\" and self.text[self.at + 1 : self.at + 2] == "\n":
                flush()
                self.at += 2
            elif char == "\\" and self.text[self.at + 1 : self.at + 2] in _ESCAPED_IN_QUOTES:
                buffer.append(self.text[self.at + 1 : self.at + 2])
                self.at += 2
            elif char in "$`" and (expansion := self._expansion(quoted=True)) is not None:
                flush()
                parts.append(expansion)
            else:
                buffer.append(char)
                self.at += 1
                if char == "\n":
                    flush()
        flush()
        self.depth -= 1
        return parts

    # ----------------------------------------------------------------------------- expansions

    def _expansion(self, *, quoted: bool) -> Part | None:
        """What ``$`` or a backtick begins here; None where it is an ordinary character."""
        line = self.line
        if self.text[self.at] == "`":
            end = re.compile(r"`((?:[^`\\]|\\.)*)`", re.DOTALL).match(self.text, self.at)
            if end is None:
                raise self.problem("a ` is not closed", line)
            self.at = end.end()
            return Command(end[1], line, quoted)
        if self.text.startswith("$((", self.at):
            start = self.at
            self.at += 1
            content = self.counting()
            if content is not None:
                return Arithmetic(content, line, quoted)
            self.at = start
        if self.text.startswith("$(", self.at):
            self.at += 2
            return Command(self.closing("(", ")"), line, quoted)
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
            raise self.problem("a ${ } has no variable's name", line)
        name, prefix = found["name"], found["prefix"]
        self.at = found.end()
        index = ""
        if self.text.startswith("[", self.at):
            self.at += 1
            index = self.closing("[", "]")
        if self.text.startswith("}", self.at):
            self.at += 1
            operator = {"#": "length", "!": "indirect"}.get(prefix or "", "")
            return Parameter(name, line, quoted, operator, None, index)
        sign = _OPERATOR.match(self.text, self.at)
        if sign is not None and sign[0] in _WITH_WORD and prefix is None:
            self.at = sign.end()
            argument = self.word(frozenset("}"), quoted=quoted)
            if not self.text.startswith("}", self.at):
                raise self.problem("a ${ is not closed", line)
            self.at += 1
            return Parameter(name, line, quoted, sign[0], argument, index)
        rest = self.closing("{", "}")
        operator = (
            sign[0] if sign is not None and sign[0] in _CASES and rest == sign[0] else "other"
        )
        # Kept as written: only plain text and numbers in it are followed.
        written = Word((Text(rest, line, True),), line) if prefix is None else None
        return Parameter(name, line, quoted, operator, written, index)

    def counting(self) -> str | None:
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
        return content

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
