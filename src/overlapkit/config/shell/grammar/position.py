"""A position in a shell script: blanks, comments, line ends."""

from __future__ import annotations

from collections.abc import Callable

from overlapkit.errors import InputError

MAX_DEPTH = 60
"""Nesting of commands, quotes and expansions; launch scripts stay below ten."""

ENDS_WORD = frozenset(" \t\n;&|<>()")


class Position:
    """A position in a script, and moving it."""

    _line_end = -1
    _after_line = -1

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
        return at >= len(self.text) or self.text[at] in ENDS_WORD

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

    def newline(self) -> None:
        """Read a line's end, and skip the heredocs that begin after it."""
        self.at = self._after_line if self.at == self._line_end else self.at + 1
