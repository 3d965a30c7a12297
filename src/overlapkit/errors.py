"""The one error that a command turns into exit status 2."""

from __future__ import annotations

_LONGEST = 1200


class InputError(Exception):
    """Bad input or a missing dependency.

    The message is one line that says what is wrong, where (file:line or key) and how to mend it.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        # What comes from a file may hold control characters, or be a whole file.
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:_LONGEST])
        super().__init__(line)
