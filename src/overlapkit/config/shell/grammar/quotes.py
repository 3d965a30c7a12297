"""Whether the end of a piece of shell text is in single quotes."""

from __future__ import annotations


class Quotes:
    """The quotes that are open after some shell text, which comes in parts.

    Attributes:
        single: whether the end is in single quotes, where nothing is expanded.
    """

    def __init__(self) -> None:
        self.single = False
        self._double = False
        self._escaped = False
        self._comment = False
        self._last = "\n"

    def after(self, text: str) -> None:
        """Go on behind more text."""
        for char in text:
            if self._comment:
                self._comment = char != "\n"
            elif self._escaped:
                self._escaped = False
            elif self.single:
                self.single = char != "'"
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._double = not self._double
            elif not self._double:
                self.single = char == "'"
                self._comment = char == "#" and self._last in " \t\n;&|()"
            self._last = char
