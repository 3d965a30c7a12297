"""The plan's times of GEMMs and attention beside measured ones, by GPU and kind of operator.

    uv run python benchmarks/plan_vs_operators.py [--json]

The measurements are in `benchmarks/data/gemm_rates.json`, which names their source. The error is
(estimated - measured) / measured rate. For each GPU and operator the median of its absolute values
is printed, the median with its sign, and the 90th percentile: of the law alone, and as
`plan --rates` foretells an operator from all others that were measured, this one being left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from statistics import median, quantiles
from typing import NamedTuple

from operator_rates import rates_of

from overlapkit.output.console import console, write_json
from overlapkit.plan.estimate.machine import Machine, machine_of
from overlapkit.plan.estimate.roofline import attention_time, gemm_time
from overlapkit.plan.rates.document import RatesAttention, RatesGemm
from overlapkit.plan.rates.nearest import Place, Ratios
from overlapkit.plan.rates.tables import (
    attention_of,
    gemm_of,
    place_of_attention,
    place_of_gemm,
    tables_of,
)

GPUS = ("a100", "b200")


class Operator(NamedTuple):
    """A measured operator.

    Attributes:
        kind: GEMM, grouped GEMM of a pass, or attention's pass.
        place: its sizes.
        ratio: measured over modelled time.
    """

    kind: str
    place: Place
    ratio: float


def operators_of(gpu: str, machine: Machine) -> list[Operator]:
    """The operators that were measured on a GPU, in the order of the file."""
    rates = rates_of(gpu)
    found = [of_gemm(row, machine) for row in rates.gemms]
    return found + [of_attention(row, machine) for row in rates.attention]


def of_gemm(row: RatesGemm, machine: Machine) -> Operator:
    """A GEMM beside the time that a machine's law gives."""
    gemm = gemm_of(row)
    assert row.tflops is not None
    measured = gemm.flops.value / row.tflops / 1e12
    kind = f"grouped GEMM {row.which}" if row.batch > 1 else "GEMM"
    return Operator(kind, place_of_gemm(gemm, row.which), measured / gemm_time(gemm, machine).value)


def of_attention(row: RatesAttention, machine: Machine) -> Operator:
    """A pass of attention beside the time that a machine's law gives."""
    one = attention_of(row)
    assert row.seconds is not None
    modelled = attention_time(one, machine, row.phase).value
    return Operator(f"attention {row.phase}", place_of_attention(one), row.seconds / modelled)


def errors_by_operator() -> dict[str, dict[str, dict[str, float]]]:
    """The errors of each GPU's GEMMs, grouped GEMMs and attention, by the law and by the others."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for gpu in GPUS:
        machine = machine_of(gpu)
        for one in operators_of(gpu, machine):
            found[f"{gpu} {one.kind}"]["law"].append(one.ratio - 1)
        for kind, error in foretold(gpu, machine):
            found[f"{gpu} {kind}"]["others"].append(error)
    return {
        name: {how: _summary(errors) for how, errors in by.items()}
        for name, by in sorted(found.items())
    }


def foretold(gpu: str, machine: Machine) -> list[tuple[str, float]]:
    """The error of each operator's rate as the others foretell it, with its kind."""
    law = replace(machine, shares={})
    tables = tables_of(rates_of(gpu), law)
    ratios: dict[str, Ratios] = {
        f"attention {phase}": each for phase, each in tables.attention.items()
    }
    result = []
    for one in operators_of(gpu, law):
        own = ratios.get(one.kind) or tables.gemms["bf16", one.kind.startswith("grouped")]
        expected = own.without(one.place).at(one.place).ratio
        result.append((one.kind, one.ratio / expected - 1))
    return result


def _summary(errors: list[float]) -> dict[str, float]:
    sizes = [abs(each) for each in errors]
    return {
        "operators": len(errors),
        "median": median(sizes),
        "signed_median": median(errors),
        "ninth_decile": quantiles(sizes, n=10)[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    found = errors_by_operator()
    if options.json:
        write_json({"errors": found})
        return
    for name, by in found.items():
        law, others = by["law"], by["others"]
        console().print(
            f"{name}: {law['operators']} operators, median error {law['median']:.1%} "
            f"(with sign {law['signed_median']:+.1%}), 90 % within {law['ninth_decile']:.1%}; "
            f"from the others {others['median']:.1%}, 90 % within {others['ninth_decile']:.1%}"
        )


if __name__ == "__main__":
    main()
