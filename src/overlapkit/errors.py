"""The one error that a command turns into exit status 2."""

from __future__ import annotations


class InputError(Exception):
    """Bad input or a missing dependency.

    The message is one line that says what is wrong, where (file:line or key) and how to mend it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
