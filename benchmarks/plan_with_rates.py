"""The plan's estimate with rates measured on the same machine, beside what its steps took.

    uv run python benchmarks/plan_with_rates.py [--json] [--rows FILE] [--each] [--all]

The operators of `benchmarks/data/gemm_rates.json` and the memory-bound kernels and collectives of
`benchmarks/data/b200_machine.json` were measured on a B200 machine by the authors of SimuMax, who
also published what training steps took there: the rows of the origin simumax-b200. The error of a
row is (estimated - published) / published tokens/s. Printed are the errors without measured rates,
with them, and those of SimuMax's own estimates from the same rates.

One constant is fitted to the rows, the share of its own rate that an operator keeps in a training
step (`SUSTAINED`): "left out" estimates a row with the share that all other layouts give, and "as
measured" with a share of 1, where nothing is fitted at all.

With --all the other rows on B200 follow, which were measured on other machines: their attention,
memory-bound kernels and collectives are estimated with these rates, their GEMMs where they are in
BF16. Without --rows the rows are those of `benchmarks/data/published_more.json`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from operator_rates import rates_of
from published_rows import Row, error, other_errors, read_rows

from overlapkit.output.console import console, write_json
from overlapkit.plan.estimate.constants import SUSTAINED
from overlapkit.plan.estimate.machine import Machine, machine_of
from overlapkit.plan.estimate.step_time import estimate
from overlapkit.plan.rates.measured import measured_machine
from overlapkit.plan.rates.resting import resting

ROWS = Path(__file__).resolve().parent / "data" / "published_more.json"
GPU, ORIGIN = "b200", "simumax-b200"
SHARES = [round(0.85 + 0.01 * step, 2) for step in range(16)]
"""Candidates of the fitted share."""


@dataclass(frozen=True)
class Compared:
    """A row and its errors.

    Attributes:
        row: the row.
        law: without measured rates.
        rates: with them.
        at: with them, by the share that an operator keeps.
        left_out: with the share that all other layouts give.
        simumax: of SimuMax's estimate; None where it has none.
        resting: share of the step that rests on measured rates.
    """

    row: Row
    law: float
    rates: float
    at: dict[float, float]
    left_out: float
    simumax: float | None
    resting: float


def machine_at(share: float = SUSTAINED) -> Machine:
    """The B200 machine with its measured rates."""
    machine = measured_machine(machine_of(GPU), rates_of(GPU), "benchmarks/data/gemm_rates.json")
    assert machine.measured is not None
    return replace(machine.measured, sustained=share).machine()


def error_on(row: Row, machine: Machine) -> float:
    """(estimated - published) / published, on a machine."""
    found = estimate(row.work, machine, row.overlap).tokens_per_second.value
    return found / row.tokens_per_second - 1


def compare(rows: list[Row]) -> list[Compared]:
    """Every row with its errors."""
    machines = {share: machine_at(share) for share in SHARES}
    at = [{share: error_on(row, machines[share]) for share in SHARES} for row in rows]
    layouts: dict[Any, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        layouts[row.measured_layout].append(number)
    own = machine_at()
    result = []
    for number, row in enumerate(rows):
        others = set(range(len(rows))) - set(layouts[row.measured_layout])
        share = best_share([at[n] for n in others]) if others else SUSTAINED
        result.append(
            Compared(
                row=row,
                law=error(row),
                rates=error_on(row, own),
                at=at[number],
                left_out=at[number][share],
                simumax=other_errors(row).get("SimuMax"),
                resting=_resting(row, own),
            )
        )
    return result


def best_share(errors: list[dict[float, float]]) -> float:
    """The share with the least mean error."""
    return min(SHARES, key=lambda share: mean(abs(each[share]) for each in errors))


def _resting(row: Row, machine: Machine) -> float:
    assert machine.measured is not None
    shares = resting(machine.measured, lambda one: estimate(row.work, one, row.overlap).step.value)
    return sum(shares.values())


def summary(errors: Iterable[float]) -> dict[str, float]:
    """Mean, median and worst of the absolute errors, and the mean with its sign."""
    found = list(errors)
    sizes = [abs(each) for each in found]
    return {
        "rows": len(found),
        "mean": mean(sizes),
        "median": median(sizes),
        "signed_mean": mean(found),
        "worst": max(sizes),
    }


def columns_of(compared: list[Compared]) -> dict[str, dict[str, float]]:
    """The errors by how the rows were estimated."""
    columns = {
        "without rates": [one.law for one in compared],
        "as measured": [one.at[1.0] for one in compared],
        "left out": [one.left_out for one in compared],
        "with rates": [one.rates for one in compared],
    }
    simumax = [one.simumax for one in compared if one.simumax is not None]
    if len(simumax) == len(compared):
        columns["SimuMax"] = simumax
    return {name: summary(errors) for name, errors in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--rows", type=Path, default=ROWS, help="rows to compare")
    parser.add_argument("--each", action="store_true", help="print every row")
    parser.add_argument("--all", action="store_true", help="other machines with B200 too")
    options = parser.parse_args()
    rows = [row for row in read_rows(options.rows)[0] if row.gpu == GPU]
    sets = {"that machine": compare([r for r in rows if r.published.origin == ORIGIN])}
    if options.all:
        sets["other machines"] = compare([r for r in rows if r.published.origin != ORIGIN])
    found = {name: columns_of(each) for name, each in sets.items()}
    share = best_share([one.at for one in sets["that machine"]])
    if options.json:
        write_json({"errors": found, "share_kept": share})
        return
    for name, compared in sets.items():
        if options.each:
            for one in compared:
                own = "" if one.simumax is None else f", SimuMax {one.simumax:+.1%}"
                console().print(
                    f"{one.row.name}: {one.law:+.1%} without rates, {one.at[1.0]:+.1%} as measured,"
                    f" {one.left_out:+.1%} left out, {one.rates:+.1%} with rates{own}; "
                    f"{one.resting:.0%} of the step rests on them"
                )
        for how, of in found[name].items():
            console().print(
                f"{name}, {how}: {of['rows']} rows, mean error {of['mean']:.1%}, median "
                f"{of['median']:.1%}, with sign {of['signed_mean']:+.1%}, worst {of['worst']:.1%}"
            )
    console().print(f"share of its own rate that an operator keeps, fitted to all rows: {share}")


if __name__ == "__main__":
    main()
