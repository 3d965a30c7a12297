"""A comparison on a terminal; all figures come from the JSON document."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlapkit.output.numbers import ms_of_us, signed_ms_of_us
from overlapkit.output.tables import add_numbers, borderless, print_item, shorten_first
from overlapkit.trace.compare.document import (
    CompareDecision,
    CompareDocument,
    CompareMoved,
    ComparePart,
)
from overlapkit.trace.compare.text import (
    NO_DECISIONS,
    NOTHING_EXPLAINED,
    change,
    configurations,
    decisions,
    explanation,
    headline,
    percent,
    unit,
    whole,
)
from overlapkit.trace.compare.verdict import Verdict
from overlapkit.trace.tables import show_warnings
from overlapkit.trace.text import PART_TITLES

_STYLES: dict[Verdict, str] = {
    "slower": "bold red",
    "faster": "green",
    "same": "green",
    "unknown": "bold yellow",
}

NOTABLE_CHANGE = 0.02
"""Share of the change of the step from which a change inside a part is listed."""


def show_comparison(document: CompareDocument, console: Console) -> None:
    """Print the verdict, the parts and what changed inside them, the decisions and the warnings."""
    print_item(console, "", Text(headline(document), _STYLES[document.verdict]))
    table = borderless()
    table.add_column(unit(document))
    add_numbers(table, "base", "new", "change", "%")
    for part in document.parts:
        table.add_row(PART_TITLES[part.part], *_row(part), percent(part.change_pct), style="bold")
        for moved in part.moved:
            if abs(moved.change_us) >= NOTABLE_CHANGE * max(1.0, abs(document.change_us)):
                table.add_row(Text(f"  {moved.name}", "dim"), *_row(moved))
    table.add_row(
        whole(document),
        ms_of_us(document.base.step_us),
        ms_of_us(document.new.step_us),
        signed_ms_of_us(document.change_us),
        percent(document.change_pct),
        style="bold",
    )
    shorten_first(table, console, most=64)
    console.print(table)
    decided = decisions(document)
    for line in configurations(document):
        console.print(Text(line, "dim"))
    for decision in decided or ():
        _show_decision(decision, console)
    if decided == []:
        console.print(NO_DECISIONS)
    show_warnings(document.warnings, console)


def _show_decision(decision: CompareDecision, console: Console) -> None:
    rule = f"  [rule {decision.rule}]" if decision.rule else ""
    console.print()
    print_item(
        console,
        "- ",
        Text.assemble((decision.knob, "bold"), f": {change(decision)}", (rule, "dim")),
    )
    if decision.reason:
        print_item(console, "  ", Text(decision.reason))
    for explained in decision.explains:
        print_item(console, "  explains: ", Text(explanation(explained), "green"))
    if not decision.explains:
        print_item(console, "  ", Text(NOTHING_EXPLAINED, "dim"))


def _row(row: ComparePart | CompareMoved) -> tuple[str, str, str]:
    return ms_of_us(row.base_us), ms_of_us(row.new_us), signed_ms_of_us(row.change_us)
