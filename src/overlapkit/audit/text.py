"""An audit as plain lines, and the wording that the terminal and the document share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from overlapkit.audit.audit import Audit, Audited
from overlapkit.explain.lint.order import notes_with_advice
from overlapkit.explain.text import verdict

State = Literal["sound", "notes", "findings", "wrong", "not-judged"]
"""What the answer on one file amounts to."""

_NOTHING = "nothing was found."
_WITHOUT_SIZE = "number of GPUs not stated (--world-size N judges the rest); on any number: "


def state(each: Audited) -> State:
    """What the answer on a file amounts to."""
    if each.report is None:
        return "wrong" if each.is_wrong else "not-judged"
    if each.findings:
        return "findings"
    return "notes" if notes_with_advice(each.report) or each.report.not_read else "sound"


def verdict_text(each: Audited) -> str:
    """The answer on a file in one line, without the file."""
    if each.report is None:
        at = f", line {each.line}" if each.line else ""
        judged = "wrong" if each.is_wrong else "not judged"
        return f"{'does not start' if each.does_not_start else judged}{at}: {each.problem}"
    if each.world_size is not None:
        return verdict(each.report)[0]
    return _WITHOUT_SIZE + verdict(each.report, _NOTHING)[0]


def audit_lines(audit: Audit) -> Iterator[str]:
    """One line for each file, then how many of them have which answer."""
    yield from (f"{each.file}: {verdict_text(each)}" for each in audit.audited)
    yield summary(audit)


def summary(audit: Audit) -> str:
    """How many files there are, and how many of them have which answer."""
    states: list[State | Literal["refused"]] = [
        "refused" if each.does_not_start else state(each) for each in audit.audited
    ]
    words: tuple[tuple[State | Literal["refused"], str], ...] = (
        ("findings", "with findings"),
        ("refused", f"that do{'es' if states.count('refused') == 1 else ''} not start"),
        ("wrong", "that cannot be read as they are"),
        ("not-judged", "that lack a value"),
        ("notes", "with notes alone"),
        ("sound", "sound"),
    )
    counts = [f"{states.count(name)} {text}" for name, text in words if name in states]
    files = f"{len(states)} configuration{'s' if len(states) != 1 else ''}"
    passed = f"; {audit.others} other files passed over" if audit.others else ""
    return f"{files}: {', '.join(counts)}{passed}" if states else f"no configuration{passed}"
