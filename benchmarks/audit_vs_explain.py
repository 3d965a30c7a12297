"""CPU time of `overlapkit audit` on many configurations, beside one `overlapkit explain` each.

    uv run python benchmarks/audit_vs_explain.py [--files N] [--runs N]

The configurations are copies of those in tests/data/bridge_configs and examples, in a temporary
folder. CPU time (user + system) is the kernel's account of the finished processes; the ratio of the
medians is what to quote. `explain` runs on a tenth of the files, and counts for all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARE = 10
"""Of so many files, `explain` runs on one."""


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a process and its children; its exit status is 0 or 1."""
    before = os.times()
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr.decode())
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def copies(folder: Path, number: int) -> list[Path]:
    """So many configurations below a folder."""
    sources = sorted(
        [*ROOT.glob("tests/data/bridge_configs/*.yaml"), *ROOT.glob("examples/*.yaml")]
    )
    paths = []
    for n, source in enumerate(islice(cycle(sources), number)):
        path = folder / f"{n % 10}" / f"{n}-{source.name}"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, path)
        paths.append(path)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    overlapkit = [sys.executable, "-m", "overlapkit.cli"]
    size = ["--world-size", "2304", "--gpu", "h100"]
    audits, explains = [], []
    with tempfile.TemporaryDirectory() as name:
        paths = copies(Path(name), options.files)
        for _ in range(options.runs):
            audits.append(cpu_seconds([*overlapkit, "audit", name, *size]))
            each = [
                cpu_seconds([*overlapkit, "explain", str(path), "--world-size", "2304"])
                for path in paths[::SHARE]
            ]
            explains.append(statistics.mean(each) * options.files)
    audit, explain = statistics.median(audits), statistics.median(explains)
    print(f"audit of {options.files} files: {audit:.2f} s of CPU")
    print(f"explain of each: {explain:.1f} s of CPU; ratio 1 : {explain / audit:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
