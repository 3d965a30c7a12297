"""Cold start of `overlapkit explain` beside importing Megatron-Core's configuration classes.

    uv run python benchmarks/explain_cold_start.py [--runs N] [CONFIG --world-size N …]

Each is a process of its own, run in turn (A B A B …) after one warm-up; CPU time (user + system) is
the kernel's account of the finished process. The ratio of the medians is what to quote: absolute
times depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ["examples/llama3_70b_64xh100.yaml", "--world-size", "64", "--gpu", "h100"]
CORE = (
    "from megatron.core.transformer.transformer_config import TransformerConfig;"
    "from megatron.core.distributed import DistributedDataParallelConfig;"
    "from megatron.core.optimizer import OptimizerConfig"
)


def measure(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one process, its children included."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    after, wall = os.times(), time.perf_counter() - start
    cpu = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return cpu, wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("arguments", nargs="*", default=EXAMPLE)
    options = parser.parse_args()
    explain = [sys.executable, "-m", "overlapkit.cli", "explain", *options.arguments]
    commands = {
        "overlapkit explain --json": [*explain, "--json"],
        "overlapkit explain": explain,
        "import Megatron-Core's configs": [sys.executable, "-W", "ignore", "-c", CORE],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for run in range(options.runs + 1):
        for name, command in commands.items():
            figures = measure(command)
            if run:
                seen[name].append(figures)
    core = statistics.median(cpu for cpu, _ in seen["import Megatron-Core's configs"])
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, {options.runs} runs each, in turn\n"
    )
    print("| process | CPU s (median) | min | max | wall s | Megatron-Core's CPU / this |")
    print("|---|---|---|---|---|---|")
    for name, figures in seen.items():
        cpu = [c for c, _ in figures]
        wall = statistics.median(w for _, w in figures)
        middle = statistics.median(cpu)
        print(
            f"| {name} | {middle:.2f} | {min(cpu):.2f} | {max(cpu):.2f} | {wall:.2f} | "
            f"{core / middle:.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
