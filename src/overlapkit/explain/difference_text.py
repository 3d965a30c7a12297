"""The wording of a comparison of two runs, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from overlapkit.explain.difference import Change, Difference
from overlapkit.explain.report import Report
from overlapkit.explain.text import Tone, basis, change_text, finding_line

_MOST_CAUSES = 6
"""Keys of one cause that are listed."""


@dataclass(frozen=True)
class ChangeText:
    """One change in words.

    Attributes:
        label: the knob, "buckets", or that a finding is new or gone.
        value: what changed, or the finding.
        reason: why the second run has its value; empty where no decision says so.
        tone: of a finding; None for the other kinds.
    """

    label: str
    value: str
    reason: str
    tone: Tone | None = None


def difference_lines(difference: Difference) -> Iterator[str]:
    """Every change under its cause, then the findings of the second run."""
    after = difference.after
    yield f"{side_text(difference.before)} -> {side_text(after)}"
    yield from rules_text(difference)
    yield from (f"note: {remark}" for remark in remarks_of(difference))
    if not difference.changes:
        yield no_change(difference)
    written = restated(difference)
    if written:
        yield from ("", f"As written: {written}")
    for cause, changes in caused(difference):
        yield from ("", cause)
        for change in changes:
            yield f"  {change.label}  {change.value}"
            if change.reason:
                yield f"    {change.reason}"
    if difference.without_effect:
        yield from ("", WITHOUT_EFFECT, *(f"  {line}" for line in idle_keys(difference)))
    if after.findings:
        yield from ("", f"Findings in {after.source}:")
        yield from (finding_line(after, d) for d in after.findings)


def rules_text(difference: Difference) -> list[str]:
    """Whose rules were applied to the two runs; one line where they are the same."""
    before, after = (basis(side)[1] for side in (difference.before, difference.after))
    return [before] if before == after else [f"before: {before}", f"after: {after}"]


def no_change(difference: Difference) -> str:
    """That no decision differs, and of what that is known."""
    if difference.before.not_read or difference.after.not_read:
        return "No decision differs in what was read; the notes name what was not read."
    return "No decision differs: the overlap in effect is the same."


def remarks_of(difference: Difference) -> list[str]:
    """What is said about both runs' versions and keys, each once."""
    return list(dict.fromkeys((*difference.before.remarks, *difference.after.remarks)))


def side_text(report: Report) -> str:
    """One of the two runs: its configuration and its number of GPUs."""
    return f"{report.source} ({report.world_size})"


WITHOUT_EFFECT = "Changed without effect on the overlap:"


def idle_keys(difference: Difference) -> list[str]:
    """The keys that differ without effect, each with its values and the reason."""
    lines = (
        f"{_key_change(difference, each.key, each.before, each.after)}: {each.reason}"
        for each in difference.without_effect
    )
    # One flag may set several keys.
    return list(dict.fromkeys(lines))


def restated(difference: Difference) -> str:
    """The keys that only differ as they are written; empty without any."""
    idle = {each.key for each in difference.without_effect}
    changes = [c for c in difference.changes if c.restates and c.of.knob not in idle]
    said = (_key_change(difference, c.of.knob, c.before, c.after) for c in changes)
    return ", ".join(dict.fromkeys(said))


def _key_change(difference: Difference, key: str, old: Any, new: Any) -> str:
    words = difference.words
    values = (words.value(key, value) for value in (old, new))
    return f"{words.name(key)} {change_text(*values)}"


def caused(difference: Difference) -> Iterator[tuple[str, list[ChangeText]]]:
    """Each cause in words with the changes that it brings about, the fewest keys first."""
    changes = [c for c in difference.changes if not c.restates]
    changes.sort(key=lambda c: (len(c.causes), c.causes))
    for causes, same in groupby(changes, key=lambda c: c.causes):
        yield _cause(difference, causes), [_change(difference, c) for c in same]


def _cause(difference: Difference, causes: tuple[str, ...]) -> str:
    if not causes:
        return "No set of keys brings this about"
    keys: list[str] = []
    for key in causes[-_MOST_CAUSES:]:
        old, new = difference.keys[key]
        if "." not in key and (old is None or new is None):
            old, new = ("absent" if v is None else _present(v) for v in (old, new))
        keys.append(_key_change(difference, key, old, new))
    more = len(causes) - len(keys)
    keys += [f"{more} more keys (--json lists them)"] if more else []
    return "Because of " + " and ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))


def _present(section: Any) -> str:
    return section if isinstance(section, str) else "present"


def _change(difference: Difference, change: Change) -> ChangeText:
    of, words = change.of, difference.words
    reason = (change.reason or "").rstrip(".")
    if of.kind == "finding":
        new = change.before is None
        value = f"{words.short(of.knob)} ({change.after or change.before} by {of.rule})"
        label = "new finding" if new else "finding gone"
        return ChangeText(label, value, reason, "bad" if new else "good")
    if of.kind == "buckets":
        now, before = change.after or "not counted", change.before or "not counted"
        return ChangeText("buckets", f"{now} (before: {before})", reason)
    values = (words.value(of.knob, value) for value in (change.before, change.after))
    return ChangeText(words.name(of.knob), change_text(*values), reason)
