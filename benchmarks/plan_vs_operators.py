"""The plan's times of GEMMs and attention beside measured ones, by GPU and kind of operator.

    uv run python benchmarks/plan_vs_operators.py [--json]

The measurements are in `benchmarks/data/gemm_rates.json`, which names their source. Each is a
share of the GPU's peak. The error is (estimated - measured) / measured rate. For each GPU and
operator the median of its absolute values is printed, the median with its sign, and the 90th
percentile. Attention is causal, but its measured rates count the scores that it skips, so that half
of them is executed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from overlapkit.output.console import console, write_json
from overlapkit.plan.estimate.machine import Machine, machine_of
from overlapkit.plan.estimate.roofline import attention_time, gemm_time
from overlapkit.plan.figure import given, literal
from overlapkit.plan.workload.attention import BACKWARD_PRODUCTS, Attention
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.precision import BF16

RATES = Path(__file__).resolve().parent / "data" / "gemm_rates.json"
STAGES = {"fwd": "fprop", "bwd_grad_act": "dgrad", "bwd_grad_w": "wgrad"}


def gemm_of(row: dict[str, Any]) -> Gemm | None:
    """The product that a row measured; None for attention."""
    told = dict(re.findall(r"(\w+)=(\w+)", row["case"]))
    if row["op"] == "matmul":
        m, n, k, batch = (int(told[axis]) for axis in ("m", "n", "k", "b"))
        which = "wgrad" if told["accumulate"] == "True" else "fprop"
    elif row["op"] == "group_matmul":
        # M tokens of each of ng experts, whose weight is N x K.
        tokens, outputs, inputs, batch = (int(told[axis]) for axis in ("M", "N", "K", "ng"))
        which = STAGES[told["stage"]]
        m, n, k = {
            "fprop": (tokens, outputs, inputs),
            "dgrad": (tokens, inputs, outputs),
            "wgrad": (outputs, inputs, tokens),
        }[which]
    else:
        return None
    return Gemm(name=row["op"], which=which, m=m, n=n, k=k, batch=batch, precision=BF16)


def attention_of(row: dict[str, Any]) -> Attention:
    """The attention that a row measured, of one layer on one GPU."""
    told = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", row["case"])}
    length, heads = told["seq_len"], told["head_num"]
    head = told["qk_head_dim"] + told["v_head_dim"]
    scores = given("scores", told["batch"] * heads * length**2 / 2, "", row["case"])
    forward = literal(2 * head, "FLOP") * scores
    rows = told["batch"] * heads * length
    return Attention(
        forward, BACKWARD_PRODUCTS * forward, 3 * forward, scores, rows=rows, head=head / 2
    )


def rate_of(row: dict[str, Any], machine: Machine) -> tuple[str, float]:
    """The kind of a row's operator, and FLOP/s as the plan estimates them."""
    gemm = gemm_of(row)
    if gemm is not None:
        kind = f" {gemm.which}" if gemm.batch > 1 else ""
        return f"{row['op']}{kind}", gemm.flops.value / gemm_time(gemm, machine).value
    phase = "backward" if row["op"] == "sdp_bwd" else "forward"
    one = attention_of(row)
    done = getattr(one, phase) / attention_time(one, machine, phase)
    return f"attention {phase}", 2 * done.value


def errors_by_operator() -> dict[str, dict[str, float]]:
    """The errors of each GPU's GEMMs, grouped GEMMs and attention."""
    machines: dict[str, Machine] = {}
    found: dict[str, list[float]] = defaultdict(list)
    for row in json.loads(RATES.read_text(encoding="utf-8"))["rows"]:
        gpu = row["gpu"].partition("-")[0]
        machine = machines.setdefault(gpu, machine_of(gpu))
        kind, rate = rate_of(row, machine)
        measured = row["share_of_peak"] * row["peak_tflops"] * 1e12
        found[f"{row['gpu']} {kind}"].append(rate / measured - 1)
    return {name: _summary(errors) for name, errors in sorted(found.items())}


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
    for name, of in found.items():
        console().print(
            f"{name}: {of['operators']} operators, median error {of['median']:.1%} "
            f"(with sign {of['signed_median']:+.1%}), 90 % within {of['ninth_decile']:.1%}"
        )


if __name__ == "__main__":
    main()
