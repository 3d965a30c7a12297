"""Shows a plan at a terminal: the strategy first, then the reasons."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from overlapkit.config.emit.yaml_text import flow
from overlapkit.output.numbers import sentence
from overlapkit.output.tables import add_numbers, borderless
from overlapkit.plan.advise.dimensions import DimensionAdvice
from overlapkit.plan.advise.next_steps import next_steps
from overlapkit.plan.plan import Plan
from overlapkit.plan.search.candidates import measures
from overlapkit.plan.search.ranking import Ranked, Ranking
from overlapkit.plan.spoken import advice, spoken
from overlapkit.plan.text import (
    CHANGES,
    CONTRADICTED,
    bubble,
    changed,
    environment,
    equally_fast,
    expectation,
    fit,
    gained,
    how,
    part_rows,
    rests,
    sureness,
    sweep_header,
    title,
    to_set,
    versions,
)

SHOWN = 15
"""Layouts of a sweep that fit on a screen."""


def show_plan(plan: Plan, console: Console) -> None:
    """The complete plan: what to expect, the strategy, settings, environment, and what to try "
    "next."""
    r = plan.recommendation
    source, machines = title(plan)
    console.print(Text.assemble((source, "bold"), f" {machines}"))
    if plan.chosen_because:
        console.print(Text(plan.chosen_because, "dim"))
    if r.costs is None:
        console.print(Text(f"No estimate: {r.not_estimated}", "yellow"))
    else:
        console.print(Text(expectation(plan), "bold green"))
        for line in (sureness(plan), *rests(plan)):
            console.print(Text(line, "dim"))
        memory = plan.memory
        console.print(Text(fit(plan), "" if memory is None or memory.fits else "yellow"))
    for line in (*bubble(plan), versions(plan)):
        console.print(Text(line, "dim"))
    settings, _, paste = to_set(plan).partition(" (")
    console.print(Text.assemble((settings, "cyan"), (f" ({paste}", "dim")))
    console.print()
    console.print(_strategy(plan))
    console.print()
    for line in how(plan):
        what, _, why = line.partition(": ")
        console.print(Text.assemble((f"{what}: ", "bold"), why))
    console.print()
    for line in environment(plan):
        export, _, why = line.partition("  # ")
        console.print(Text.assemble((export, "cyan"), (f"  # {why}", "dim")))
    if r.costs is not None:
        console.print(Text("\nEstimated parts of the step (ms)", "bold"))
        console.print(_parts(plan))
    if r.changes:
        console.print(Text(f"\n{CHANGES}", "bold"))
        for line in changed(plan):
            console.print(line)
    console.print(Text(f"\n{CONTRADICTED}", "bold"))
    for step in next_steps(r.proposal):
        console.print(Text(step.shows))
        console.print(Padding(Text(f"-> {spoken(plan, step.change)}", "green"), (0, 0, 0, 2)))
    for note in plan.notes:
        console.print(Text(f"note: {spoken(plan, note)}", "yellow"))


def _strategy(plan: Plan) -> Table:
    table = borderless()
    table.add_column("", min_width=3)
    table.add_column("dimension", no_wrap=True)
    table.add_column("ranks", justify="right")
    table.add_column("saves", no_wrap=True)
    table.add_column("why", ratio=1, overflow="fold")
    for d in plan.recommendation.dimensions:
        gain = plan.recommendation.gains.get(d.name)
        worth = gained(gain).removeprefix("saves ") if gain is not None else ""
        d = advice(plan, d)
        why = Text(sentence(d.reason))
        if d.remedy:
            why.append(f"\n-> {d.remedy}", style="green")
        table.add_row(_switch(d), d.name, str(d.ranks), worth, why)
    return table


def _switch(d: DimensionAdvice) -> Text:
    if d.ranks == 1:
        return Text("-", "dim")
    return Text("on", "green") if d.on else Text("off", "yellow")


def _parts(plan: Plan) -> Table:
    table = borderless()
    table.add_column("")
    add_numbers(table, "without", "with overlap")
    for name, before, after in part_rows(plan):
        table.add_row(name, before, after)
    return table


def show_ranking(ranking: Ranking, console: Console) -> None:
    """The fastest layouts of a sweep."""
    console.print(Text(sweep_header(ranking), "bold"))
    console.print(_layouts(ranking.fitting[:SHOWN]))
    if len(ranking.fitting) > SHOWN:
        console.print(Text(f"and {len(ranking.fitting) - SHOWN} slower ones", "dim"))
    if len(ranking.fitting) > 1:
        console.print(Text(equally_fast(ranking), "dim"))
    console.print()


def _layouts(ranked: Sequence[Ranked]) -> Table:
    table = borderless()
    add_numbers(table, "", "TP", "PP", "VPP", "CP", "EP", "DP", "micro-batch", "step ms")
    add_numbers(table, "tokens/s/GPU", "GB")
    table.add_column("also set")
    for place, each in enumerate(ranked, start=1):
        layout = each.layout
        sizes = (layout.tp, layout.pp, layout.vp, layout.cp, layout.ep, each.data_parallel_size)
        table.add_row(
            str(place),
            *map(str, sizes),
            str(layout.mbs),
            f"{1e3 * each.summary.step_s:,.0f}",
            f"{each.summary.tokens_per_s_per_gpu:,.0f}",
            f"{each.memory.needed / 1e9:.1f}",
            " ".join(f"{key}={flow(value)}" for key, value in measures(layout).items())
            + ", ".join(layout.saving),
        )
    return table
