"""What a launch script leaves unknown, and may add to what was read of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Doubt(Enum):
    """How much a gap weakens an answer."""

    UNREAD = "unread"
    """Anything may be in it: nothing is said to be missing that it may add."""
    ASSUMED = "assumed"
    """A condition on a variable that nothing sets. Bash decides it in the same way where nobody
    sets the variable beforehand, so only a finding that depends on it is weakened."""
    SETS_UP = "sets-up"
    """It sets up programs and libraries, as conda and module do: nearly every script has it, and it
    rarely sets what decides on overlap. It is named beside a finding, which stays."""


@dataclass(frozen=True)
class Gap:
    """Something of a launch script that is not known.

    Attributes:
        place: the file, and the line where it has one: ``train.sh:3``.
        what: what may add something, as the subject of a sentence: ``./env.sh``.
        remedy: how to make it known: ``give what it sets as NAME=value``.
        variables: the variables that it may set; None where it may set any.
        flags: the flags that it may add to the job's arguments; None where it may add any.
        doubt: how much it weakens an answer.
    """

    place: str
    what: str
    remedy: str
    variables: frozenset[str] | None = None
    flags: frozenset[str] | None = frozenset()
    doubt: Doubt = Doubt.UNREAD

    def may_set(self, name: str) -> bool:
        """Whether it may set a variable."""
        return self.variables is None or name in self.variables

    def may_add(self, flag: str) -> bool:
        """Whether it may add a flag."""
        return self.flags is None or flag in self.flags

    def __str__(self) -> str:
        """What it is, and where."""
        return f"{self.what} ({self.place})"


def unread(gaps: Iterable[Gap]) -> tuple[Gap, ...]:
    """Those because of which not everything is known to be in effect."""
    return tuple(gap for gap in gaps if gap.doubt is Doubt.UNREAD)
