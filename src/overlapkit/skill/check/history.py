"""Where lines are now that a page named at an earlier commit.

An anchor without quoted lines does not say what it should show. The commit that its line of the
page is from does: the file then had those lines at that place.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

from overlapkit.skill.check.checkout import Checkout
from overlapkit.skill.check.quote import Source, Span, source_of


@dataclass(frozen=True)
class Then:
    """A file when a line of a page was written.

    Attributes:
        commit: of the line.
        path: of the file, as it was then.
        source: its lines.
    """

    commit: str
    path: str
    source: Source

    def lines(self, span: Span) -> tuple[str, ...] | None:
        """The lines of a span; None where the file did not have them all."""
        if span.start < 1 or span.end > len(self.source.lines):
            return None
        return self.source.lines[span.start - 1 : span.end]


class History:
    """Files of a checkout at the commits that the lines of a page are from."""

    def __init__(self, checkout: Checkout, page: Path) -> None:
        self._checkout = checkout
        inside = checkout.git.root is not None and page.is_relative_to(checkout.git.root)
        self._page = page if inside else None

    @cache  # noqa: B019 - one object for each page
    def _commits(self) -> dict[int, str]:
        return self._checkout.git.blame(self._page) if self._page else {}

    def then(self, line: int, path: str) -> Then | None:
        """A file at the commit that a line of the page is from; None where it was not there.

        Args:
            line: of the page, from 1.
            path: of the file, relative to the checkout.
        """
        commit = self._commits().get(line)
        text = self._checkout.git.text_at(commit, path) if commit else None
        return None if commit is None or text is None else Then(commit, path, source_of(text))

    def new_name(self, line: int, path: str) -> str | None:
        """What a file of that commit is called now; None where git sees no rename."""
        commit = self._commits().get(line)
        return self._checkout.git.renames(commit).get(path) if commit else None


def moved_to(then: Source, now: Source, span: Span) -> tuple[Span | None, bool]:
    """Where lines of an older text are in a newer one, and whether all of them are, unchanged.

    Args:
        then: the older text.
        now: the newer text.
        span: lines of the older text.
    """
    pairs = _matching(then.lines, now.lines)
    wanted = range(span.start - 1, span.end)
    found = [pairs[n] for n in wanted if n in pairs]
    if not found:
        return None, False
    whole = len(found) == len(wanted) and found[-1] - found[0] == len(wanted) - 1
    return Span(found[0] + 1, found[-1] + 1), whole


@cache
def _matching(then: tuple[str, ...], now: tuple[str, ...]) -> dict[int, int]:
    """The lines that a difference of two texts keeps: old index to new index."""
    head = 0
    while head < min(len(then), len(now)) and then[head] == now[head]:
        head += 1
    tail = 0
    while tail < min(len(then), len(now)) - head and then[-1 - tail] == now[-1 - tail]:
        tail += 1
    pairs = {n: n for n in range(head)}
    pairs |= {len(then) - 1 - n: len(now) - 1 - n for n in range(tail)}
    middle = SequenceMatcher(
        None, then[head : len(then) - tail], now[head : len(now) - tail], autojunk=False
    )
    for block in middle.get_matching_blocks():
        pairs |= {head + block.a + n: head + block.b + n for n in range(block.size)}
    return pairs
