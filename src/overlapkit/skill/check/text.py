"""The answer of a check as plain lines, and the wording that the other forms share."""

from __future__ import annotations

from collections.abc import Iterator

from overlapkit.skill.check.check import Checked, CheckedPage
from overlapkit.skill.check.finding import UNCOMPARED, Finding, Kind, State

_NAMES: dict[Kind, tuple[str, str]] = {
    "anchor": ("anchor", "anchors"),
    "link": ("relative link", "relative links"),
    "frontmatter": ("frontmatter", "frontmatters"),
    "count": ("promised number", "promised numbers"),
}
_STATES: tuple[State, ...] = ("right", "moved", "changed", "gone", "wrong", "unknown", "note")
_WORDS: dict[State, str] = {"unknown": "not known", "note": "with a note"}


def message_text(finding: Finding) -> str:
    """The answer on one thing in one line, without the place on the page."""
    said = f": {finding.message}" if finding.message else ""
    return f"{finding.kind} {finding.text}: {_WORDS.get(finding.state, finding.state)}{said}"


def worth_saying(finding: Finding, *, everything: bool = False) -> bool:
    """Whether the text has a line about it: what is right is only counted, unless asked for."""
    return everything or finding.state != "right" or finding.edit is not None


def page_lines(page: CheckedPage, *, everything: bool = False) -> Iterator[str]:
    """A line for each thing on a page that is not right, or was put right; or for each thing."""
    for finding in page.findings:
        if worth_saying(finding, everything=everything):
            yield f"{page.file}:{finding.line}: {message_text(finding)}"


def check_lines(checked: Checked, *, everything: bool = False) -> Iterator[str]:
    """What is not right, or everything, then how many things were looked at."""
    for page in checked.pages:
        yield from page_lines(page, everything=everything)
    yield summary(checked)


def summary(checked: Checked) -> str:
    """How many anchors, links and so on have which state."""
    parts = []
    for kind, (one, several) in _NAMES.items():
        counts = {state: checked.states[kind, state] for state in _STATES}
        looked_at = sum(
            n for state, n in counts.items() if kind != "frontmatter" or state != "note"
        )
        if not looked_at:
            continue
        states = ", ".join(f"{n} {_WORDS.get(s, s)}" for s, n in counts.items() if n)
        uncompared = sum(
            finding.kind == kind and finding.message == UNCOMPARED
            for page in checked.pages
            for finding in page.findings
        )
        if uncompared:
            states += f" ({uncompared} without anything to compare)"
        parts.append(f"{looked_at} {one if looked_at == 1 else several}: {states}")
    fixed = sum(page.fixed for page in checked.pages)
    put_right = f"; {fixed} written anew" if fixed else ""
    return f"{'; '.join(parts) or 'no anchor, relative link or frontmatter'}{put_right}"
