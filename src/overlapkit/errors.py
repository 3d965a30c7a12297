"""Exit statuses, and the one error that a command turns into 2."""

from __future__ import annotations

EXIT_FINDING = 1
"""A finding: a requested setting is not in effect, a page drifted, or a step regressed."""
EXIT_BAD_INPUT = 2
"""Bad input, a missing dependency, or an output that cannot be written."""

_LONGEST = 1200


class InputError(Exception):
    """Bad input or a missing dependency.

    The message is one line that says what is wrong, where (file:line or key) and how to fix it.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        # What comes from a file may hold control characters, which a terminal would obey.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class DoesNotStart(InputError):
    """A configuration that was understood, and that the framework itself refuses at start."""


class NoConfiguration(InputError):
    """A file that can be read, and is no configuration of a run."""


class SeveralLaunches(InputError):
    """A script that starts several jobs with different arguments.

    Attributes:
        lines: of the launches, from 1.
    """

    def __init__(self, message: str, lines: tuple[int, ...]) -> None:
        self.lines = lines
        super().__init__(message)
