"""Reads the words of a shell script: quotes, expansions, comments, heredocs."""

from __future__ import annotations

import re
from collections.abc import Callable

from overlapkit.config.shell.syntax import (
    Arithmetic,
    Command,
    CommandList,
    Parameter,
    Part,
    Text,
    Word,
)
from overlapkit.errors import InputError

MAX_DEPTH = 60
"""Nesting of commands, quotes and expansions; launch scripts stay below ten."""

_ENDS_WORD = frozenset(" \t\n;&|<>()")
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
_BRACED = re.compile(r"(?P<prefix>[!#](?=[\w@*])|!(?=#\}))?(?P<name>[A-Za-z_]\w*|\d+|[@*#?$!-])")
_OPERATOR = re.compile(r":[-=+?]|[-=+?]|%%|%|##|#|//|/[#%]?|,,|,|\^\^|\^|:|@[QUuLEPAaKk](?=\})")
MOST_ATTEMPTS = 50
"""Command substitutions whose commands cannot be parsed, in one script."""
_ESCAPED_IN_QUOTES = '$`"\\'
_ANSI = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "e": "\x1b", "\\": "\\", "'": "'", '"': '"'}


class WordReader:
    """A position in a script, and reading words from it."""

    def __init__(self, text: str, path: str, line_of: Callable[[int], int]) -> None:
        self.text = text
        self.path = path
        self.line_of = line_of
        self.at = 0
        self.depth = 0
        self.attempts = 0
        self._pending: list[tuple[str, bool, bool]] = []

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

    def heredocs(self) -> list[Word]:
        """The texts of the heredocs that the command just read has, from the lines after its own.

        Their delimiters were read with `pending_heredoc`. A ``<<<`` is read in its place.
        """
        if not self._pending:
            return []
        # Several commands of a line can have heredocs: the next one's text comes after the last.
        line_end = self.text.find("\n", self.at)
        if line_end < 0:
            raise self.problem(f"the heredoc {self._pending[0][0]} has no text")
        rest = self.at
        self.at = self._after_line if line_end == self._line_end else line_end + 1
        pending, self._pending = self._pending, []
        bodies = [self._heredoc(*each) for each in pending]
        self._after_line, self._line_end = self.at, line_end
        self.at = rest
        return bodies

    _line_end = -1
    _after_line = -1

    def newline(self) -> None:
        """Read a line's end, and skip the heredocs that begin after it."""
        self.at = self._after_line if self.at == self._line_end else self.at + 1

    def _heredoc(self, delimiter: str, quoted: bool, strip_tabs: bool) -> Word:
        """A heredoc's text, without the line that ends it."""
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
        if strip_tabs:
            body = re.sub(r"(?m)^\t+", "", body)
        if quoted:
            return Word((Text(body, line, True),), line)
        inner = type(self)(body, self.path, lambda offset: line + body.count("\n", 0, offset))
        inner.depth, inner.attempts = self.depth, self.attempts
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
            raise self.problem("a ${ } has no variable's name", line)
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
            self.at += 2
            return Parameter(name, line, quoted, "names")
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
