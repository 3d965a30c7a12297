"""Warm start of the skill's `scripts/overlapkit` beside that of an installed overlapkit.

    uv run python benchmarks/skill_start.py [--runs N] [ARGUMENT …]

The skill is copied into a folder of its own, as an installer does, and started there through uv.
The installed overlapkit is that of this checkout's environment. Each is a process of its own, run
in turn (A B A B …) after one warm-up, in which uv makes the environment and each compiles its
source. The ratio and the difference of the medians are what to quote.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from explain_cold_start import EXAMPLE, ROOT

from overlapkit.skill.render import SKILL


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of one process."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("arguments", nargs="*", default=["explain", *EXAMPLE])
    options = parser.parse_args()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(prefix="overlapkit-benchmark-") as made:
        copy = Path(made) / SKILL.name
        shutil.copytree(ROOT / SKILL, copy, ignore=shutil.ignore_patterns("__pycache__"))
        environment["XDG_CACHE_HOME"] = f"{made}/cache"
        # uv keeps what it downloaded, and the environment of the script.
        environment["UV_CACHE_DIR"] = subprocess.run(
            ["uv", "cache", "dir"], capture_output=True, text=True, check=True
        ).stdout.strip()
        commands = {
            "installed": [str(Path(sys.executable).with_name("overlapkit"))],
            "the skill's script, uv": ["uv", "run", "-q", "-s", str(copy / "scripts/overlapkit")],
            "the skill's script, python": [sys.executable, str(copy / "scripts/overlapkit")],
        }
        seen: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(options.runs + 1):
            for name, command in commands.items():
                wall = seconds([*command, *options.arguments], environment)
                if run:
                    seen[name].append(wall)
    base = statistics.median(seen["installed"])
    print(f"{options.runs} runs each, in turn; overlapkit {' '.join(options.arguments)}\n")
    print("| start | wall s (median) | min | max | ratio | difference s |")
    print("|---|---|---|---|---|---|")
    for name, walls in seen.items():
        middle = statistics.median(walls)
        print(
            f"| {name} | {middle:.2f} | {min(walls):.2f} | {max(walls):.2f} | "
            f"{middle / base:.2f} | {middle - base:+.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
