"""Shows the difference of two runs, to a person and as JSON."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from overlapkit.explain.difference import Change, Difference
from overlapkit.explain.tables import show_findings
from overlapkit.output.numbers import setting_text

_MOST_TOLD = 6


def show_difference(difference: Difference, console: Console) -> None:
    """Every changed outcome under its cause, then the findings of the second run."""
    before, after = difference.before, difference.after
    console.print(
        Text.assemble(
            (before.source, "bold"),
            f" ({before.world_size}) -> ",
            (after.source, "bold"),
            f" ({after.world_size})",
        )
    )
    if not difference.changes:
        console.print("No decision differs: the overlap in effect is the same.")
    restated = [c for c in difference.changes if c.restates]
    if restated:
        told = ", ".join(f"{c.of.knob} {_values(c.before, c.after)}" for c in restated)
        console.print(Text(f"\nAs written: {told}"))
    caused = sorted((c for c in difference.changes if not c.restates), key=_fewest)
    for causes, changes in groupby(caused, key=lambda c: c.causes):
        console.print(Text(f"\n{_cause(difference, causes)}", "cyan"))
        for change in changes:
            console.print(_change(change))
    if after.findings:
        console.print(Text(f"\nFindings in {after.source}:", "bold red"))
        show_findings(after, console)


def _fewest(change: Change) -> tuple[int, tuple[str, ...]]:
    return len(change.causes), change.causes


def _cause(difference: Difference, causes: tuple[str, ...]) -> str:
    if not causes:
        return "No set of keys brings this about"
    told = []
    for key in causes[-_MOST_TOLD:]:
        old, new = difference.keys[key]
        if "." not in key and (old is None or new is None):
            old, new = ("absent" if v is None else _present(v) for v in (old, new))
        told.append(f"{key} {_values(old, new)}")
    more = len(causes) - len(told)
    told += [f"{more} keys more (--json names them)"] if more else []
    return "Because of " + " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def _present(section: Any) -> str:
    return section if isinstance(section, str) else "present"


def _change(change: Change) -> Text:
    of = change.of
    if of.kind == "finding":
        now = "new finding" if change.before is None else "finding gone"
        text = Text.assemble("  ", (now, "bold red" if change.before is None else "green"))
        text.append(f"  {of.knob} ({change.after or change.before} by {of.rule})")
    elif of.kind == "buckets":
        text = Text.assemble("  ", ("buckets", "bold"))
        text.append(f"  {change.after or 'not counted'}")
        text.append(f" (before: {change.before or 'not counted'})", "dim")
    else:
        text = Text.assemble("  ", (of.knob, "bold"), f"  {_values(change.before, change.after)}")
    if change.reason:
        text.append(f"\n    {change.reason.rstrip('.')}", "dim")
    return text


def _values(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [str(key) for key in {**old, **new} if old.get(key) != new.get(key)]
        return f"given, with another {', '.join(changed)}"
    return f"{setting_text(old)} -> {setting_text(new)}"
