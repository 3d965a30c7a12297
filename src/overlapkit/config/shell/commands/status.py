"""How a command of a shell ends."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Status(Enum):
    """How a command ends."""

    YES = 0
    NO = 1
    ASSUMED = 2
    """A program, which is not run and is assumed to succeed."""
    UNKNOWN = 3
    """A test, whose result is not known without running it."""

    @staticmethod
    def of(truth: bool | None) -> Status:
        """That of a test."""
        return Status.UNKNOWN if truth is None else Status.YES if truth else Status.NO

    @property
    def negated(self) -> Status:
        """Its opposite; an assumed success is no reason to assume a failure."""
        opposite = {Status.YES: Status.NO, Status.NO: Status.YES}
        return opposite.get(self, Status.UNKNOWN)


CODES = {Status.YES: 0, Status.NO: 1, Status.ASSUMED: 0}
"""What ``$?`` is after a command."""


class Grounds(NamedTuple):
    """What a condition depends on.

    Attributes:
        unset: variables that it read and nothing sets.
        read: the script's variables that it read.
    """

    unset: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The variables to give for another outcome: those that nothing sets, if there are any."""
        return self.unset or self.read

    def and_of(self, other: Grounds) -> Grounds:
        """What two conditions depend on."""
        return Grounds(*(tuple(dict.fromkeys(a + b)) for a, b in zip(self, other, strict=True)))


class Stop(Exception):
    """exit, return, break or continue.

    Attributes:
        kind: which of these.
        line: where it is.
        status: how it says that the script or function ended.
        code: the same as a number; None where that is not known.
        levels: how many loops break or continue leaves.
        names: variables that decide whether it is reached.
    """

    def __init__(
        self,
        kind: str,
        line: int,
        status: Status = Status.YES,
        levels: int = 1,
        names: tuple[str, ...] = (),
        code: int | None = None,
    ) -> None:
        self.kind = kind
        self.line = line
        self.status = status
        self.levels = levels
        self.names = names
        self.code = code
