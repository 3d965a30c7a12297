"""Shows what the lab found to a person; every figure comes from the JSON document."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"confirmed": "green", "not confirmed": "bold red", "not testable here": "yellow"}
BAR = 24
"""Columns of the longest step's bar."""
UNTIMED_ROWS = 12
"""Variants of a block without times that are listed before the rest is counted."""


def show_lab(document: dict[str, Any], console: Console) -> None:
    """Per scenario a table of its variants and a verdict on each claim; then the sum of it."""
    machine = document["machine"]
    console.print(
        f"{machine['device_name']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    )
    link = document["link"]
    console.print(f"link ({link['kind']}): {link['meaning']}")
    if link["kind"] != "kernel":
        console.print(f"because {link['reason']}")
    for scenario in document["scenarios"]:
        console.print()
        console.print(Text.assemble((scenario["name"], "bold"), f"  {scenario['title']}"))
        for block in scenario["blocks"]:
            _block(block, console, named=len(scenario["blocks"]) > 1)
        for claim in scenario["claims"]:
            console.print(
                Text.assemble(
                    (f"{claim['outcome']}: ", STYLES[claim["outcome"]]),
                    claim["claim"],
                    (f"\n    {claim['evidence']}", "dim"),
                )
            )
    console.print()
    console.print(_sum(document))


def _sum(document: dict[str, Any]) -> Text:
    claims = [claim for scenario in document["scenarios"] for claim in scenario["claims"]]
    counts = {outcome: sum(claim["outcome"] == outcome for claim in claims) for outcome in STYLES}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    style = STYLES["confirmed" if document["confirmed"] else "not confirmed"]
    return Text(f"{len(claims)} claims: {told} ({document['seconds']:.0f} s)", style)


def _block(block: dict[str, Any], console: Console, *, named: bool) -> None:
    head = f"{block['ranks']} rank{'s' if block['ranks'] > 1 else ''}"
    if block["link_mbit"] is not None:
        head += f", link {block['link_mbit']:,.0f} Mbit/s"
    if block["timed"]:
        head += f", {block['counted_steps']} steps each"
    if named:
        head = f"{block['name']}: {head}"
    console.print(Text(head, "dim"))
    variants = block["variants"]
    if block["timed"]:
        console.print(_timed(block))
    elif len(variants) <= UNTIMED_ROWS:
        console.print(_untimed(variants))
    for variant in variants:
        if "error" in variant:
            console.print(Text(f"{variant['name']}: refused: {variant['error']}", "yellow"))


def _timed(block: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("ms a step", no_wrap=True)
    for name in ("step", "+/-", "ratio", "exposed", "hidden", "overlap", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("compute # exposed =", no_wrap=True)
    rows = [variant for variant in block["variants"] if "step_ms" in variant]
    longest = max((variant["step_ms"] for variant in rows), default=1.0)
    fastest = min((variant["step_ms"] for variant in rows), default=0.0)
    for variant in rows:
        profile = variant.get("profile")
        table.add_row(
            variant["name"],
            f"{variant['step_ms']:,.0f}",
            f"{variant['spread_ms']:,.0f}",
            f"{variant['ratio']:.2f} x",
            "-" if profile is None else f"{profile['exposed_ms']:,.0f}",
            "-" if profile is None else f"{profile['hidden_ms']:,.0f}",
            "-"
            if profile is None or profile["overlap_pct"] is None
            else f"{profile['overlap_pct']:.0f} %",
            f"{variant['peak_mb']:,.0f}",
            _bar(variant, longest),
            style="bold" if variant["step_ms"] == fastest else "",
        )
    if block["ideal_ms"] is not None:
        table.add_row(
            "ideal",
            f"{block['ideal_ms']:,.0f}",
            "",
            f"{block['ideal_ms'] / rows[0]['step_ms']:.2f} x",
            style="dim",
        )
    return table


def _bar(variant: dict[str, Any], longest: float) -> str:
    columns: int = round(BAR * variant["step_ms"] / longest)
    profile = variant.get("profile")
    if profile is None:
        return "#" * columns
    exposed: int = round(columns * profile["exposed_ms"] / profile["step_ms"])
    return "#" * (columns - exposed) + "=" * exposed


def _untimed(variants: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name in ("variant", "layout", "last loss", "weights"):
        table.add_column(name, no_wrap=True)
    for variant in variants:
        if "error" in variant:
            continue
        layout = " ".join(f"{k}{v}" for k, v in variant["layout"].items() if v > 1) or "one process"
        losses = variant["losses"]
        table.add_row(
            variant["name"],
            layout,
            f"{losses[-1]:.6f}" if losses and losses[-1] is not None else "-",
            variant["weights"][0][:8],
        )
    return table
