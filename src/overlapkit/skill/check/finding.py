"""What was found about one thing that a page says: an anchor, a link, a field or a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from overlapkit.skill.check.quote import Span

Kind = Literal["anchor", "link", "frontmatter", "count"]
State = Literal["right", "moved", "changed", "gone", "wrong", "note", "unknown"]
"""`wrong` and `note` are of frontmatter; `unknown` is what could not be examined."""

UNCOMPARED = "the lines exist; nothing says what they should show"
"""Message of an anchor that quotes nothing, and whose lines no commit tells."""

DRIFT: tuple[State, ...] = ("moved", "changed", "gone", "wrong")
"""States that make a check fail."""


@dataclass(frozen=True)
class Place:
    """Lines of a file of the checkout.

    Attributes:
        path: relative to the checkout.
        span: the lines.
    """

    path: str
    span: Span

    def __str__(self) -> str:
        """As ``path:START-END``."""
        return f"{self.path}:{lines_text(self.span)}"


@dataclass(frozen=True)
class Edit:
    """A text of a page and what replaces it.

    Attributes:
        line: of the page, from 1.
        column: from 0.
        old, new: the texts.
    """

    line: int
    column: int
    old: str
    new: str


@dataclass(frozen=True)
class Finding:
    """What was found about one thing that a page says.

    Attributes:
        line: of the page, from 1.
        kind: what it is.
        state: what was found.
        text: as the page has it.
        message: the answer in one line, without the place on the page.
        place: for an anchor the lines that it should name, or the nearest; None where none are.
        similarity: of the nearest lines with what is quoted, 0 to 1; None where it does not matter.
        edit: what puts it right; None where nothing is sure to.
    """

    line: int
    kind: Kind
    state: State
    text: str
    message: str
    place: Place | None = None
    similarity: float | None = None
    edit: Edit | None = None

    @property
    def is_drift(self) -> bool:
        """Whether the page is wrong about it."""
        return self.state in DRIFT


def lines_text(span: Span) -> str:
    """The numbers of lines: ``12`` or ``12-20``."""
    return f"{span.start}" if span.start == span.end else f"{span.start}-{span.end}"
