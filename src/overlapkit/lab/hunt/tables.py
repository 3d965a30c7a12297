"""A hunt's document on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlapkit.lab.hunt.document import HuntDocument
from overlapkit.lab.hunt.text import described, tried


def show_hunt(document: HuntDocument, console: Console) -> None:
    """What was tried, and each finding with its reproduction."""
    for line in tried(document):
        console.print(Text(line))
    for finding in document.findings:
        console.print()
        console.print(Text(finding.kind, "bold red"))
        for line in described(finding):
            console.print(Text(line))
        if finding.file is None:
            console.print(Text(finding.configuration.rstrip("\n"), "dim"))
        console.print(Text(finding.command))
    console.print()
    found = len(document.findings)
    console.print(
        Text(f"{found} finding" + ("" if found == 1 else "s"), "bold red" if found else "green")
    )
