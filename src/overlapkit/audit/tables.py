"""An audit on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlapkit.audit.audit import Audit
from overlapkit.audit.text import State, state, summary, verdict_text
from overlapkit.output.tables import print_item

_STYLES: dict[State, str] = {
    "sound": "green",
    "notes": "yellow",
    "findings": "bold red",
    "wrong": "bold red",
    "not-judged": "yellow",
}


def show_audit(audit: Audit, console: Console) -> None:
    """Each file with its verdict below it, then how many have which answer."""
    for each in audit.audited:
        console.print(Text(each.file, "bold"))
        print_item(console, "  ", Text(verdict_text(each), _STYLES[state(each)]))
    console.print(Text(summary(audit), "bold red" if audit.fails else "green"))
