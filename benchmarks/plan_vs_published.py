"""The plan's estimate beside published training throughput, by class of machine and model.

    uv run python benchmarks/plan_vs_published.py [--json] [--rows FILE] [--each] [--fit] [--write]

The error of a row is (estimated - published) / published tokens/s. `SHARES` in `constants.py` were
fitted to the newest release of each layout in `src/overlapkit/data/published_throughput.json` and
`benchmarks/data/published_more.json`, as far as these were measured with Megatron. A row whose
layout (model, GPU, precision and division, in whatever release) is among these is estimated with
shares fitted to all other layouts. Every figure is therefore out of sample, but for one thing: the
constants that hold for all GPUs were chosen on the 15 rows of the first file and on the whole of
the second. `--fit` prints the shares of all layouts, `--write` writes the errors by class to
`src/overlapkit/data/estimate_errors.json`, from which every plan takes its range.

Without --rows the rows are those of both files, each with its source; FILE has rows of the same
form. For each class it prints the number of rows, the mean of the absolute errors, their median,
the mean error with its sign, and the worst. A row that cannot be estimated is reported on standard
error and counted. Exit status 2: none can be.

Layouts are compared where a table has several for one model, GPU, number of GPUs, precision and
sequence. Of a layout that was measured in several releases the best counts. Printed are the share
of pairs in the right order, of those more than 1 % apart, and the loss of the layout that the
estimate prefers against the best that was measured; then both for layouts of one release, since
between releases the software differs too.

What a row does not say is assumed as NVIDIA's performance recipes of its release set it
(`benchmarks/data/recipes.json`: CUDA graphs, dispatcher, overlap, what is recomputed or offloaded).
Else FP8 is current scaling, without BF16 layers; the overlap is comm_overlap's default, with
tp_comm_overlap where TP > 1; FSDP shards optimizer state, gradients and parameters; layers that do
not divide evenly count embedding and loss as one each; gradients are reduced in BF16, since with
fp32 four layouts would not fit into memory; nothing is recomputed or offloaded.

Two rows contradict their neighbours. Llama 3 70B with MXFP8 on GB300, PP 4 without virtual stages
and 8 microbatches: the bubble would be 3/8 of the work, so that its GPUs would have to compute a
quarter faster than those of the FSDP row, and the micro-batch of 2 would need 1.4 times a GPU's
memory. GPT-OSS 120B on GB300 in release 26.06.01 is 39 % slower than the same layout in 26.06 and
in 26.08: its fused kernels had a known fault (release notes of Megatron-Bridge 0.5.1). Both are
estimated as published.
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

import msgspec
import numpy as np
from published_rows import Row, error, estimated, other_errors, read_rows

from overlapkit.errors import EXIT_BAD_INPUT, InputError
from overlapkit.hardware import gpus
from overlapkit.output.console import console, write_json
from overlapkit.plan.estimate.constants import CONSTANTS, Constants
from overlapkit.plan.estimate.machine import machine_of
from overlapkit.plan.estimate.sureness import (
    TABLE,
    Errors,
    ErrorTable,
    Order,
    class_of,
    wider_class_of,
)
from overlapkit.plan.workload.precision import PRECISIONS

ROOT = Path(__file__).resolve().parents[1]
FIT_ROWS = ROOT / "src/overlapkit/data/published_throughput.json"
MORE_ROWS = ROOT / "benchmarks/data/published_more.json"

ITERATIONS = 12
DELTA = 0.05
NOISE = 0.08
"""Spread of the errors of one class's layouts, as a logarithm."""
OF_GPU, OF_PRECISION, OWN = 0.1, 0.1, 0.05
"""How far a share is from 1, as a logarithm, before its rows are seen: it is the product of one
factor of its GPU, one of its precision, and one of its own. A class with few rows thus takes after
the other precisions of its GPU, and after its precision on other GPUs."""
OF_ATTENTION = 0.12
"""The same of attention's shares, which have no such factors."""
OUTLIER = 0.15
OTHER_FRAMEWORKS = ("torchtitan", "llm-foundry")
"""Origins whose rows were not measured with Megatron: nothing is fitted to them."""
OTHERS = ("torchtitan", "llm-foundry", "simumax-b200", "bloom", "llama3-paper")
"""Origins whose tables are not NVIDIA's: other frameworks, or settings of their own."""
CURRENT = (26, 2)
"""The oldest release of NVIDIA's containers that counts as current."""
APART = 0.01
"""Layouts whose measurements differ by less are in no order."""


def fit_rows_of(rows: list[Row]) -> list[Row]:
    """The rows that shares are fitted to: of Megatron, and the newest release of each layout.

    Hybrids are not among them: their GEMMs and attention are those of other models.
    """
    newest: dict[tuple[object, ...], Row] = {}
    for row in rows:
        if row.published.origin in OTHER_FRAMEWORKS or row.kind == "hybrid":
            continue
        key = *row.measured_layout, row.published.gpus, row.published.gbs, row.published.origin
        if key not in newest or row.release >= newest[key].release:
            newest[key] = row
    return list(newest.values())


class Fit:
    """The fit of the shares to rows: least squares of the logarithm of the error, and of the share.

    Attributes:
        rows: that are fitted to.
        keys: of the shares.
        prior: inverse of the covariance of the shares' logarithms before any row is seen.
        slopes: of each row's log error by each share's logarithm, at shares of 1.
        off: the log errors there.
    """

    def __init__(self, rows: list[Row], keys: list[str]) -> None:
        self.rows, self.keys = rows, keys
        self.prior = np.linalg.inv(covariance(keys))
        start = CONSTANTS._replace(shares=dict.fromkeys(keys, 1.0))
        self.off = np.array([np.log1p(error(row, start)) for row in rows])
        self.slopes = np.zeros((len(rows), len(keys)))
        for column, key in enumerate(keys):
            more = start._replace(shares=start.shares | {key: float(np.exp(DELTA))})
            for n, row in enumerate(rows):
                if key in shares_of(row):
                    change = np.log1p(error(row, more)) - self.off[n]
                    self.slopes[n, column] = change / DELTA

    def without(self, layout: tuple[object, ...] | None) -> Constants:
        """The constants fitted to all rows except those of a layout."""
        kept = np.array([row.measured_layout != layout for row in self.rows])
        at = np.zeros(len(self.keys))
        for _ in range(ITERATIONS):
            left = self.off + self.slopes @ at
            # Beyond `OUTLIER` an error counts by its size rather than by its square.
            weight = kept * np.minimum(1, OUTLIER / np.maximum(np.abs(left), 1e-9)) / NOISE**2
            weighted = self.slopes.T * weight
            at = np.linalg.solve(weighted @ self.slopes + self.prior, -weighted @ self.off)
        shares = np.exp(at)
        return CONSTANTS._replace(shares=dict(zip(self.keys, map(float, shares), strict=True)))


def covariance(keys: list[str]) -> np.ndarray:
    """Of the shares' logarithms, before any row is seen."""
    found = np.zeros((len(keys), len(keys)))
    for i, one in enumerate(keys):
        for j, other in enumerate(keys):
            if "attention" in (one.split()[0], other.split()[0]):
                found[i, j] = OF_ATTENTION**2 if i == j else 0
                continue
            (gpu, precision), (its_gpu, its_precision) = one.split(" ", 1), other.split(" ", 1)
            found[i, j] = OF_GPU**2 * (gpu == its_gpu) + OF_PRECISION**2 * (
                PRECISIONS[precision].rate == PRECISIONS[its_precision].rate
            )
            found[i, j] += OWN**2 * (i == j)
    return found


def shares_of(row: Row) -> set[str]:
    """The shares that a row's estimate depends on."""
    kinds = {layer.precision.name for layer in (*row.work.layers, row.work.vocabulary)}
    return {*(f"{row.gpu} {name}" for name in kinds), f"attention {gpus()[row.gpu].arch}"}


def classes_of(row: Row) -> dict[str, str]:
    """The classes that a row belongs to, by what they distinguish."""
    precision = row.work.precision.name
    whose = "others' tables" if row.published.origin in OTHERS else "NVIDIA's tables"
    current = row.release >= CURRENT
    return {
        "all": "all rows",
        "kind": f"{row.kind}, {whose}",
        "releases": f"{row.kind}, {'current' if current else 'older'} releases",
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


def error_table_of(rows: list[Row], errors: list[float]) -> ErrorTable:
    """The errors that plans take their ranges from: of each class, each layout of Megatron once."""
    found: dict[str, dict[tuple[object, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, off in zip(rows, errors, strict=True):
        if row.published.origin in OTHER_FRAMEWORKS:
            continue
        for name in (class_of(row.work, row.gpu), wider_class_of(row.work, row.gpu)):
            found[name][row.measured_layout].append(1 / (1 + off))
    classes = {}
    for name, layouts in sorted(found.items()):
        shares = sorted(median(each) for each in layouts.values())
        tenth = len(shares) // 10
        classes[name] = Errors(len(shares), round(shares[tenth], 3), round(shares[-1 - tenth], 3))
    return ErrorTable(
        source="uv run python benchmarks/plan_vs_published.py --write",
        classes=classes,
        order={kind: _order_of(rows, errors, kind) for kind in ("dense", "MoE")},
    )


def _order_of(rows: list[Row], errors: list[float], kind: str) -> Order:
    """How far one layout of a pair is misjudged against the other. Releases that are years apart
    are not compared."""
    misjudged = []
    for current in (False, True):
        chosen = [
            (row, off)
            for row, off in zip(rows, errors, strict=True)
            if row.kind == kind and (row.release >= CURRENT) == current
        ]
        for layouts in _by_machine([row for row, _ in chosen], [off for _, off in chosen]).values():
            for (a, a_estimate), (b, b_estimate) in combinations(layouts.values(), 2):
                ratio = a_estimate / a * b / b_estimate
                misjudged.append(max(ratio, 1 / ratio))
    misjudged.sort()
    return Order(len(misjudged), round(misjudged[int(0.8 * len(misjudged))], 3))


_Measured = tuple[float, float]
"""Tokens/s that were measured, and that were estimated."""


def _by_machine(
    rows: list[Row], errors: list[float]
) -> dict[tuple[object, ...], dict[tuple[object, ...], _Measured]]:
    """The layouts of each model on each machine, of each the best release."""
    groups: dict[tuple[object, ...], dict[tuple[object, ...], _Measured]] = {}
    for row, off in zip(rows, errors, strict=True):
        known = groups.setdefault(row.machine, {})
        measured = row.tokens_per_second
        if measured > known.get(row.layout, (0.0, 0.0))[0]:
            known[row.layout] = measured, measured * (1 + off)
    return groups


def order(rows: list[Row], errors: list[float]) -> dict[str, Any]:
    """How well the estimate orders the layouts of one model on one machine.

    `one_release` are the same figures where only layouts of one release are compared: between
    releases the software differs too.
    """
    apart = defaultdict[tuple[int, ...], list[int]](list)
    for number, row in enumerate(rows):
        apart[row.release].append(number)
    machines = [
        layouts
        for members in apart.values()
        for layouts in _by_machine(
            [rows[n] for n in members], [errors[n] for n in members]
        ).values()
    ]
    return _order_in(list(_by_machine(rows, errors).values())) | {
        "one_release": _order_in(machines)
    }


def _order_in(machines: list[dict[tuple[object, ...], _Measured]]) -> dict[str, Any]:
    pairs, losses = [], []
    for layouts in machines:
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
    parser.add_argument("--fit", action="store_true", help="print the fitted shares, and end")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    options = parser.parse_args()
    try:
        rows, refused = read_rows(*([options.rows] if options.rows else [FIT_ROWS, MORE_ROWS]))
        fit_rows, _ = read_rows(FIT_ROWS, MORE_ROWS)
    except InputError as problem:
        rows, fit_rows, refused = [], [], [str(problem)]
    for line in refused:
        print(f"plan_vs_published: {line}", file=sys.stderr)
    if not rows:
        return EXIT_BAD_INPUT
    if options.fit:
        for key, share in fitted(fit_rows).without(None).shares.items():
            print(f'    "{key}": {share:.2f},')
        return 0
    document = report(rows, fit_rows, refused)
    if options.write:
        table = error_table_of(rows, [row["error"] for row in document["rows"]])
        TABLE.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    if options.json:
        write_json(document)
    else:
        _show(document, each=options.each)
    return 0


def fitted(rows: list[Row]) -> Fit:
    """The fit to the rows that are apt for it."""
    chosen = fit_rows_of(rows)
    seen = set[str]().union(*map(shares_of, chosen))
    # Classes without a row take after their GPU and their precision.
    known = {
        f"{gpu} {precision.name}"
        for gpu in {row.gpu for row in chosen}
        for precision in PRECISIONS.values()
        if precision.rate in machine_of(gpu).rates and precision.rate != "fp32"
    }
    return Fit(chosen, sorted(seen | known))


def report(rows: list[Row], fit_rows: list[Row], refused: list[str]) -> dict[str, Any]:
    """The document of the benchmark."""
    fit = fitted(fit_rows)
    known = {row.measured_layout for row in fit.rows}
    constants = {layout: fit.without(layout) for layout in known}
    everything = fit.without(None)
    used = [constants.get(row.measured_layout, everything) for row in rows]
    estimates = [estimated(row, one) for row, one in zip(rows, used, strict=True)]
    errors = [error(row, one) for row, one in zip(rows, used, strict=True)]
    return {
        "constants": everything._asdict(),
        "classes": by_class(rows, errors),
        "order": order(rows, errors),
        "refused": refused,
        "rows": [
            {
                "name": row.name,
                "classes": classes_of(row),
                "layout_was_fitted": row.measured_layout in known,
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
    for what, of in (("", found), (" in one release", found["one_release"])):
        if of["pairs"]:
            out.print(
                f"order of layouts{what}: {of['right']:.0%} of {of['pairs']} pairs are right; the "
                f"pick loses {of['mean_loss']:.1%} on average and {of['worst_loss']:.1%} at worst "
                f"on {of['machines']} machines"
            )
        else:
            out.print(f"order of layouts{what}: no machine has several")
    if document["refused"]:
        out.print(f"not estimated: {len(document['refused'])} rows")


if __name__ == "__main__":
    raise SystemExit(main())
