"""A comparison on a terminal; all figures come from the JSON document."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from overlapkit.output.numbers import ms_of_us, signed_ms_of_us
from overlapkit.output.tables import add_numbers, borderless, print_item, shorten_first
from overlapkit.trace.compare.document import (
    CompareCause,
    CompareDecision,
    CompareDocument,
    CompareMoved,
    ComparePart,
)
from overlapkit.trace.compare.text import (
    NO_DECISIONS,
    NOTHING_EXPLAINED,
    by_knob,
    causes,
    change,
    configurations,
    decisions,
    differences,
    explanation,
    headline,
    of_cause,
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
    for text in (*differences(document), *document.contradictions):
        print_item(console, "", Text(text, "bold yellow"))
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
    for cause in causes(document):
        _show_cause(cause, by_knob(decided or ()), console)
    if decided == []:
        console.print(NO_DECISIONS)
    show_warnings(document.warnings, console)


def _show_cause(
    cause: CompareCause, decided: Mapping[str, CompareDecision], console: Console
) -> None:
    """What leads, what it explains, and what else has the same cause."""
    console.print()
    reasons: set[str] = set()
    for place, decision in enumerate(of_cause(cause, decided)):
        rule = f"  [rule {decision.rule}]" if decision.rule else ""
        named = decision.change if place else change(decision)
        text = Text.assemble((decision.name, "bold"), f": {named}", (rule, "dim"))
        print_item(console, "  with it: " if place else "- ", text)
        if decision.reason and decision.reason not in reasons:
            print_item(console, "    " if place else "  ", Text(decision.reason))
            reasons.add(decision.reason)
        if place:
            continue
        for explained in cause.explains:
            print_item(console, "  explains: ", Text(explanation(explained), "green"))
        if not cause.explains:
            print_item(console, "  ", Text(NOTHING_EXPLAINED, "dim"))


def _row(row: ComparePart | CompareMoved) -> tuple[str, str, str]:
    return ms_of_us(row.base_us), ms_of_us(row.new_us), signed_ms_of_us(row.change_us)
