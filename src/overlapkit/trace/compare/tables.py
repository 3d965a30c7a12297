"""Shows a comparison to a person at a terminal; all figures come from the JSON document."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from overlapkit.output.numbers import ms_of_us, setting_text
from overlapkit.output.tables import add_numbers, borderless
from overlapkit.trace.document import TITLES
from overlapkit.trace.tables import show_warnings

_STYLES = {"slower": "bold red", "faster": "green", "same": "green"}


def headline(document: dict[str, Any]) -> str:
    """The verdict in a sentence."""
    base, new = document["base"], document["new"]
    change, spread = document["change_us"], document["spread_us"]
    percent = document["change_pct"]
    sign = "+" if change >= 0 else "-"
    told = "" if percent is None else f", {percent:+.1f} %"
    verdict = {
        "slower": "Slower beyond the spread of its steps",
        "faster": "Faster beyond the spread of its steps",
        "same": "No change beyond the spread of its steps",
    }[document["verdict"]]
    return (
        f"Median step {ms_of_us(base['step_us'])} -> {ms_of_us(new['step_us'])} ms "
        f"({sign}{ms_of_us(abs(change))} ms{told}). {verdict} ({ms_of_us(spread)} ms)."
    )


def show_comparison(document: dict[str, Any], console: Console) -> None:
    """Verdict, parts with what moved in them, decisions, warnings."""
    console.print(Text(headline(document), _STYLES[document["verdict"]]))
    table = borderless()
    table.add_column("ms a step", overflow="ellipsis", max_width=64, no_wrap=True)
    add_numbers(table, "base", "new", "change")
    for part in document["parts"]:
        table.add_row(TITLES[part["part"]], *_row(part), style="bold")
        for mover in part["moved"]:
            if abs(mover["change_us"]) >= 0.02 * max(1.0, abs(document["change_us"])):
                table.add_row(Text(f"  {mover['name']}", "dim"), *_row(mover))
    table.add_row(
        "step",
        ms_of_us(document["base"]["step_us"]),
        ms_of_us(document["new"]["step_us"]),
        _signed(document["change_us"]),
        style="bold",
    )
    console.print(table)
    for decision in document.get("decisions", []):
        _decision(decision, console)
    if document.get("decisions") == []:
        console.print("The configurations decide alike: no overlap setting explains the change.")
    show_warnings(document["warnings"], console)


def _decision(decision: dict[str, Any], console: Console) -> None:
    causes = ", ".join(decision["causes"])
    line = Text.assemble(
        "\n",
        (decision["knob"], "bold"),
        f": {setting_text(decision['base'])} -> {setting_text(decision['new'])}",
    )
    if causes and causes != decision["knob"]:
        line.append(f" (by {causes})")
    if decision["rule"]:
        line.append(f"  [rule {decision['rule']}]", "dim")
    console.print(line)
    if decision["reason"]:
        console.print(Text(f"  {decision['reason']}"))
    for moved in decision["explains"]:
        dimension = f"{moved['dimension']} " if moved["dimension"] else ""
        if moved["operations"]:
            dimension += f"{' and '.join(moved['operations'])}, "
        console.print(
            Text(
                f"  fits: {dimension}{TITLES[moved['part']]} {_signed(moved['change_us'])} ms",
                "green",
            )
        )
    if not decision["explains"]:
        console.print(Text("  no part that it acts on has moved", "dim"))


def _row(row: dict[str, Any]) -> tuple[str, str, str]:
    return ms_of_us(row["base_us"]), ms_of_us(row["new_us"]), _signed(row["change_us"])


def _signed(us: float) -> str:
    return f"{'+' if us >= 0 else '-'}{ms_of_us(abs(us))}"
