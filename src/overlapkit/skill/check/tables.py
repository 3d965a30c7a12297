"""The answer of a check on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlapkit.output.tables import print_item
from overlapkit.skill.check.check import Checked
from overlapkit.skill.check.text import message_text, summary, worth_saying


def show_check(checked: Checked, console: Console, *, everything: bool = False) -> None:
    """Each page with what is not right on it below, or all of it, then how many things were looked
    at."""
    for page in checked.pages:
        shown = [one for one in page.findings if worth_saying(one, everything=everything)]
        if shown:
            console.print(Text(page.file, "bold"))
        for finding in shown:
            style = "red" if finding.is_drift else "green" if finding.state == "right" else "yellow"
            print_item(console, f"  {finding.line}: ", Text(message_text(finding), style))
    console.print(Text(summary(checked), "bold red" if checked.fails else "green"))
