"""Reads the words of a shell script: quotes, heredocs."""

from __future__ import annotations

import re

from overlapkit.config.shell.grammar.escapes import unescaped
from overlapkit.config.shell.grammar.expansions import ExpansionReader
from overlapkit.config.shell.grammar.position import ENDS_WORD
from overlapkit.config.shell.grammar.syntax import (
    Command,
    Part,
    Text,
    Word,
)

_ESCAPED_IN_HEREDOC = "$`\\"
_ESCAPED_IN_QUOTES = _ESCAPED_IN_HEREDOC + '"'


class WordReader(ExpansionReader):
    """Words at the current position."""

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

    def word(self, ends: frozenset[str] = ENDS_WORD, *, quoted: bool = False) -> Word:
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

        while self.at < len(self.text):
            char = self.text[self.at]
            if char in ends and not (ends is ENDS_WORD and self.at_process()):
                break
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
        if char in "<>" and not quoted and self.at_process():
            line, self.at = self.line, self.at + 2
            # A file that a program writes or reads.
            return [Command(self.closing("(", ")"), line, True)]
        return None

    def at_process(self) -> bool:
        """Whether a process substitution begins here: ``<(…)`` or ``>(…)``."""
        return self.text.startswith(("<(", ">("), self.at)

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
        return Text(unescaped(found[1], "quotes"), line, True)

    def quoted_parts(self, until: str | None) -> list[Part]:
        """Parts up to a closing quote, which is read too, or to the end of a heredoc's text."""
        self.deeper()
        opened, parts, buffer = self.line, list[Part](), list[str]()
        begun = opened
        # In a heredoc a quote is an ordinary character, and so is a backslash before it.
        escaped = _ESCAPED_IN_QUOTES if until is not None else _ESCAPED_IN_HEREDOC

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
            elif char == "\\" and self.text[self.at + 1 : self.at + 2] in escaped:
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
