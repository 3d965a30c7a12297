"""The operators of `benchmarks/data/gemm_rates.json` as a file of rates, `overlapkit/rates/v1`.

    uv run python benchmarks/operator_rates.py b200 > rates.json

Each of the measurements is a share of the GPU's peak. Those of attention count all pairs of
positions, though it is causal. What was measured on the B200 machine beside operators is in
`benchmarks/data/b200_machine.json`. Both name their source.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.plan.rates.document import (
    RatesAttention,
    RatesCollective,
    RatesDocument,
    RatesGemm,
    RatesMemory,
)
from overlapkit.plan.workload.attention import BACKWARD_PRODUCTS

DATA = Path(__file__).resolve().parent / "data"
RATES = DATA / "gemm_rates.json"
MACHINES = {"b200": DATA / "b200_machine.json"}
STAGES = {"fwd": "fprop", "bwd_grad_act": "dgrad", "bwd_grad_w": "wgrad"}
LAYOUTS = {"TN": "fprop", "NN": "dgrad", "NT": "wgrad"}
GIB = 2**30


def operator_rows(gpu: str) -> list[dict[str, Any]]:
    """The measurements on a GPU, as they are in the file."""
    rows = json.loads(RATES.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["gpu"].partition("-")[0] == gpu]


def rates_of(gpu: str) -> RatesDocument:
    """What was measured on a GPU."""
    rows = operator_rows(gpu)
    memory, collectives = _machine(MACHINES[gpu]) if gpu in MACHINES else ([], [])
    return RatesDocument(
        gpu=gpu,
        measured="alone",
        source=json.loads(RATES.read_text(encoding="utf-8"))["source"],
        gemms=[gemm_row(row) for row in rows if "matmul" in row["op"]],
        attention=[attention_row(row) for row in rows if row["op"].startswith("sdp")],
        memory=memory,
        collectives=collectives,
    )


def gemm_row(row: dict[str, Any]) -> RatesGemm:
    """A GEMM or a grouped GEMM, whose M tokens of each of ng experts meet a weight of N x K."""
    told = dict(re.findall(r"(\w+)=(\w+)", row["case"]))
    if row["op"] == "matmul":
        m, n, k, batch = (int(told[axis]) for axis in ("m", "n", "k", "b"))
        which = LAYOUTS[told["layout"]]
    else:
        tokens, outputs, inputs, batch = (int(told[axis]) for axis in ("M", "N", "K", "ng"))
        which = STAGES[told["stage"]]
        m, n, k = {
            "fprop": (tokens, outputs, inputs),
            "dgrad": (tokens, inputs, outputs),
            "wgrad": (outputs, inputs, tokens),
        }[which]
    tflops = row["share_of_peak"] * row["peak_tflops"]
    return RatesGemm(precision="bf16", m=m, n=n, k=k, batch=batch, which=which, tflops=tflops)


def attention_row(row: dict[str, Any]) -> RatesAttention:
    """A pass of causal attention."""
    told = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", row["case"])}
    backward = row["op"] == "sdp_bwd"
    head = told["qk_head_dim"] + told["v_head_dim"]
    done = 2 * head * told["batch"] * told["head_num"] * told["seq_len"] ** 2
    done *= BACKWARD_PRODUCTS if backward else 1
    return RatesAttention(
        phase="backward" if backward else "forward",
        precision="bf16",
        batch=told["batch"],
        sequence=told["seq_len"],
        heads=told["head_num"],
        qk_head=told["qk_head_dim"],
        v_head=told["v_head_dim"],
        seconds=done / (row["share_of_peak"] * row["peak_tflops"] * 1e12),
    )


def _machine(path: Path) -> tuple[list[RatesMemory], list[RatesCollective]]:
    """Memory-bound kernels and collectives within the node."""
    told = json.loads(path.read_text(encoding="utf-8"))
    memory = [
        RatesMemory(
            kind=kind, gb_s=share * told["memory_gib_s"] * GIB / 1e9, kernel_us=told["kernel_us"]
        )
        for kind, share in told["memory_shares"].items()
    ]
    collectives = [
        RatesCollective(
            kind=one["kind"],
            link="node",
            ranks=int(ranks) if ranks else None,
            bus_gb_s=one["share"] * told["link_gib_s"] * GIB / 1e9,
            step_us=one["step_us"],
            fixed_us=fixed,
        )
        for one in told["collectives"]
        for ranks, fixed in one["fixed_us"].items()
    ]
    return memory, collectives


def main() -> None:
    if len(sys.argv) != 2 or not operator_rows(sys.argv[1]):
        raise SystemExit("usage: operator_rates.py b200|a100")
    print(msgspec.json.format(msgspec.json.encode(rates_of(sys.argv[1])), indent=1).decode())


if __name__ == "__main__":
    main()
