"""The plan's estimate beside published training throughput, by class of machine and model.

    uv run python benchmarks/plan_vs_published.py [--json] [--rows FILE] [--each]

The error of a row is (estimated - published) / published tokens/s. No row is estimated with
constants that its own layout was fitted to: `FITTED` in `constants.py` was fitted to the rows of
`src/overlapkit/data/published_throughput.json`, and a row whose layout (model, GPU, precision and
division, in whatever release) is among these is estimated with constants fitted to all other
layouts of that file. Every figure is therefore out of sample.

Without --rows the rows are those of that file and of `benchmarks/data/published_more.json`, each
with its source; FILE has rows of the same form. For each class it prints the number of rows, the
mean of the absolute errors, their median, the mean error with its sign, and the worst. A row that
cannot be estimated is reported on standard error and counted. Exit status 2: none can be.

Layouts are compared where a table has several for one model, GPU, number of GPUs, precision and
sequence. Of a layout that was measured in several releases the best counts. Printed are the share
of pairs in the right order, of those more than 1 % apart, and the loss of the layout that the
estimate prefers against the best that was measured.

What a row does not say is assumed as NVIDIA's performance recipes set it: FP8 is current scaling,
without BF16 layers; the overlap is comm_overlap's default, with tp_comm_overlap where TP > 1; FSDP
shards optimizer state, gradients and parameters; layers that do not divide evenly count embedding
and loss as one each; gradients are reduced in BF16, since with fp32 four layouts would not fit into
memory; nothing is recomputed or offloaded.

One row contradicts itself: Llama 3 70B with MXFP8 on GB300, PP 4 without virtual stages and 8
microbatches. The bubble would be 3/8 of the work, so that its GPUs would have to compute a quarter
faster than those of the FSDP row, and the micro-batch of 2 would need 1.4 times a GPU's memory. All
other pipelines in that table have virtual stages. The row is estimated as published.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from published_rows import Row, error, estimated, other_errors, read_rows

from overlapkit.errors import EXIT_BAD_INPUT, InputError
from overlapkit.output.console import console, write_json
from overlapkit.plan.estimate.constants import CONSTANTS, FITTED, Constants

ROOT = Path(__file__).resolve().parents[1]
FIT_ROWS = ROOT / "src/overlapkit/data/published_throughput.json"
MORE_ROWS = ROOT / "benchmarks/data/published_more.json"

ITERATIONS = 4
DELTA = 0.05
LARGEST_STEP = 0.2
OTHERS = ("torchtitan", "llm-foundry", "simumax-b200", "bloom", "llama3-paper")
"""Origins whose tables are not NVIDIA's: other frameworks, or settings of their own."""
APART = 0.01
"""Layouts whose measurements differ by less are in no order."""


def fitted(rows: list[Row], start: Constants, slopes: np.ndarray) -> Constants:
    """The fitted constants that minimize the squares of the log errors.

    The slopes at `start` are used throughout: errors are nearly linear in the logarithms.

    Args:
        slopes: of each row's log error by each of `FITTED`'s logarithm.
    """
    at = np.log([getattr(start, name) for name in FITTED])
    for _ in range(ITERATIONS):
        off = np.array([np.log1p(error(row, _constants(start, at))) for row in rows])
        step, *_ = np.linalg.lstsq(slopes, -off, rcond=None)
        at = at + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
    return _constants(start, at)


def _constants(start: Constants, logarithms: np.ndarray) -> Constants:
    return start._replace(**dict(zip(FITTED, map(float, np.exp(logarithms)), strict=True)))


def slopes_at(rows: list[Row], constants: Constants) -> np.ndarray:
    """How each row's log error changes with the logarithm of each fitted constant."""
    base = np.array([np.log1p(error(row, constants)) for row in rows])
    columns = []
    for name in FITTED:
        more = constants._replace(**{name: getattr(constants, name) * np.exp(DELTA)})
        columns.append((np.array([np.log1p(error(row, more)) for row in rows]) - base) / DELTA)
    return np.stack(columns, axis=1)


def constants_without(rows: list[Row]) -> dict[tuple[object, ...], Constants]:
    """For each layout that the constants were fitted to, those fitted to all other layouts.

    Args:
        rows: that the constants were fitted to.
    """
    slopes = slopes_at(rows, CONSTANTS)
    found = {}
    for layout in {row.measured_layout for row in rows}:
        others = [n for n, row in enumerate(rows) if row.measured_layout != layout]
        found[layout] = fitted([rows[n] for n in others], CONSTANTS, slopes[others])
    return found


def classes_of(row: Row) -> dict[str, str]:
    """The classes that a row belongs to, by what they distinguish."""
    precision = row.work.precision.name
    whose = "others' tables" if row.published.origin in OTHERS else "NVIDIA's tables"
    return {
        "all": "all rows",
        "kind": f"{row.kind}, {whose}",
        "origin": row.published.origin or "published_throughput",
        "GPU, precision and kind": f"{row.gpu} {precision} {row.kind}",
    }


def summary(errors: list[float]) -> dict[str, float]:
    """What errors come to; with their sign, positive is too fast."""
    sizes = [abs(each) for each in errors]
    return {
        "rows": len(errors),
        "mean": mean(sizes),
        "median": median(sizes),
        "signed_mean": mean(errors),
        "worst": max(sizes),
    }


def by_class(rows: list[Row], errors: list[float]) -> dict[str, dict[str, dict[str, Any]]]:
    """The errors of each class, and of other tools on those of its rows that they state."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        for what, name in classes_of(row).items():
            found[what, name].append(number)
    result: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for (what, name), members in sorted(found.items()):
        result[what][name] = summary([errors[n] for n in members]) | {
            "other_tools": _others(rows, errors, members)
        }
    return result


def _others(rows: list[Row], errors: list[float], members: Iterable[int]) -> dict[str, Any]:
    told: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for n in members:
        for tool, theirs in other_errors(rows[n]).items():
            told[tool].append((theirs, errors[n]))
    return {
        tool: {"theirs": summary([a for a, _ in both]), "ours": summary([b for _, b in both])}
        for tool, both in told.items()
    }


def order(rows: list[Row], errors: list[float]) -> dict[str, Any]:
    """How well the estimate orders the layouts of one model on one machine."""
    groups: dict[tuple[object, ...], dict[tuple[object, ...], tuple[float, float]]] = {}
    for row, off in zip(rows, errors, strict=True):
        known = groups.setdefault(row.machine, {})
        measured = row.tokens_per_second
        if measured > known.get(row.layout, (0.0, 0.0))[0]:
            known[row.layout] = measured, measured * (1 + off)
    pairs, losses = [], []
    for layouts in groups.values():
        if len(layouts) < 2:
            continue
        for (a, a_estimate), (b, b_estimate) in combinations(layouts.values(), 2):
            if abs(a / b - 1) > APART:
                pairs.append((a > b) == (a_estimate > b_estimate))
        pick, _ = max(layouts.values(), key=lambda one: one[1])
        losses.append(1 - pick / max(measured for measured, _ in layouts.values()))
    return {
        "machines": len(losses),
        "pairs": len(pairs),
        "right": sum(pairs) / len(pairs) if pairs else None,
        "mean_loss": mean(losses) if losses else None,
        "worst_loss": max(losses) if losses else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="other rows")
    parser.add_argument("--each", action="store_true", help="list every row")
    options = parser.parse_args()
    try:
        rows, refused = read_rows(*([options.rows] if options.rows else [FIT_ROWS, MORE_ROWS]))
        fit_rows, _ = read_rows(FIT_ROWS)
    except InputError as problem:
        rows, fit_rows, refused = [], [], [str(problem)]
    for line in refused:
        print(f"plan_vs_published: {line}", file=sys.stderr)
    if not rows:
        return EXIT_BAD_INPUT
    document = report(rows, fit_rows, refused)
    if options.json:
        write_json(document)
    else:
        _show(document, each=options.each)
    return 0


def report(rows: list[Row], fit_rows: list[Row], refused: list[str]) -> dict[str, Any]:
    """The document of the benchmark."""
    without = constants_without(fit_rows)
    used = [without.get(row.measured_layout, CONSTANTS) for row in rows]
    estimates = [estimated(row, one) for row, one in zip(rows, used, strict=True)]
    errors = [error(row, one) for row, one in zip(rows, used, strict=True)]
    return {
        "constants": CONSTANTS._asdict(),
        "fitted": FITTED,
        "classes": by_class(rows, errors),
        "order": order(rows, errors),
        "refused": refused,
        "rows": [
            {
                "name": row.name,
                "classes": classes_of(row),
                "layout_was_fitted": row.measured_layout in without,
                "published_tokens_per_second": row.tokens_per_second,
                "estimated_tokens_per_second": one.tokens_per_second.value,
                "error": off,
                "error_of_other_tools": other_errors(row),
                "estimated_model_tflops": one.model_flops_per_second.value / 1e12,
                "published_model_tflops": row.model_tflops,
                "parts_s": {name: part.value for name, part in one.parts.items()},
            }
            for row, one, off in zip(rows, estimates, errors, strict=True)
        ],
    }


def _show(document: dict[str, Any], *, each: bool) -> None:
    from rich.table import Table

    out = console()
    if each:
        table = Table(title="tokens/s/GPU, estimated and published")
        table.add_column("run")
        for column in ("published", "estimated", "error"):
            table.add_column(column, justify="right")
        for row in document["rows"]:
            table.add_row(
                row["name"],
                f"{row['published_tokens_per_second']:,.0f}",
                f"{row['estimated_tokens_per_second']:,.0f}",
                f"{row['error']:+.1%}",
            )
        out.print(table)
    table = Table(title="error of tokens/s, out of sample")
    table.add_column("class")
    for column in ("rows", "mean", "median", "with sign", "worst"):
        table.add_column(column, justify="right")
    for classes in document["classes"].values():
        for name, of in classes.items():
            sizes = f"{of['mean']:.1%}", f"{of['median']:.1%}", f"{of['signed_mean']:+.1%}"
            table.add_row(name, f"{of['rows']}", *sizes, f"{of['worst']:.1%}")
        table.add_section()
    out.print(table)
    for tool, both in document["classes"]["all"]["all rows"]["other_tools"].items():
        theirs, ours = both["theirs"], both["ours"]
        out.print(
            f"{tool} on the {theirs['rows']} rows that state its estimate: mean "
            f"{theirs['mean']:.1%}, worst {theirs['worst']:.1%}; plan: mean {ours['mean']:.1%}, "
            f"worst {ours['worst']:.1%}"
        )
    if not any(row["error_of_other_tools"].get("Calculon") for row in document["rows"]):
        out.print("Calculon: no row states its estimate")
    found = document["order"]
    if found["pairs"]:
        out.print(
            f"order of layouts: {found['right']:.0%} of {found['pairs']} pairs are right; the pick "
            f"loses {found['mean_loss']:.1%} on average and {found['worst_loss']:.1%} at worst "
            f"on {found['machines']} machines"
        )
    else:
        out.print("order of layouts: no machine has several")
    if document["refused"]:
        out.print(f"not estimated: {len(document['refused'])} rows")


if __name__ == "__main__":
    raise SystemExit(main())
