"""What `overlapkit.monitor` costs a training: DistributedDataParallel on CPU ranks over gloo.

    uv run python benchmarks/monitor_overhead.py [--steps N] [--every N] [--ranks N]

In one run, blocks of five steps take turns: without the monitor, without it again, and with it. The
second shows how far equal steps differ on this machine. Each step of rank 0 is of one of these
kinds, or beside an analysis, or profiled. The ratios of the medians are what to quote: absolute
times depend on the machine and on what else it does. The analysis needs a core of its own; where
the ranks keep all of them busy, it takes longer.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from overlapkit.monitor import OverlapMonitor, OverlapReport

BLOCK = 5
PROFILED = 2
WARM_UP = 20


def train(rank: int, options: argparse.Namespace, folder: str) -> None:
    """Train as `rank`; rank 0 writes the kind and the seconds of every step."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(options.ranks))
    dist.init_process_group("gloo", rank=rank, world_size=options.ranks)
    width = 384
    layers = [torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU()) for _ in range(8)]
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(*layers), bucket_cap_mb=0.5
    )
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(256, width)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    times: dict[str, list[float]] = {}
    calls: list[float] = []
    reports: list[OverlapReport] = []
    with OverlapMonitor(every=options.every, steps=PROFILED, report=reports.append) as monitor:
        for index in range(options.steps):
            in_window = monitor._recording is not None
            # A window is not interrupted: its steps follow each other.
            turn = index // BLOCK % 3
            monitored = in_window or turn == 2
            beside = monitor._analysis is not None
            begin = time.perf_counter()
            step()
            trained = time.perf_counter()
            if monitored:
                monitor.step()
            end = time.perf_counter()
            # The start of a window and its end are part of the steps that wait for them.
            profiled = in_window or monitor._recording is not None
            beside = beside or (monitor._analysis is not None and not profiled)
            kind = (
                "profiled"
                if profiled
                else "beside an analysis"
                if beside
                else "between windows"
                if monitored
                else ("without", "without, again")[turn]
            )
            times.setdefault(kind, []).append(end - begin)
            if kind == "between windows":
                calls.append((end - trained) / (end - begin))
    dist.destroy_process_group()
    if rank == 0:
        result = {
            "times": times,
            "calls": calls,
            "stall_us": [r.stall_us for r in reports],
            "skipped": monitor.skipped,
        }
        Path(folder, "result.json").write_bytes(msgspec.json.encode(result))


def main() -> None:
    """Train, and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--every", type=int, default=50, help="monitored steps from window on")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, GLOO_SOCKET_IFNAME="lo")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores")
    print(f"load before the run: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, args=(options, folder), nprocs=options.ranks)
        result = msgspec.json.decode(Path(folder, "result.json").read_bytes())
    times = result["times"]
    plain = statistics.median(times["without"])
    print("\n| steps | number | median ms | of a step without |\n|---|---:|---:|---:|")
    for kind in ("without", "without, again", "between windows", "beside an analysis", "profiled"):
        each = times.get(kind, [])
        if each:
            median = statistics.median(each)
            print(f"| {kind} | {len(each)} | {1000 * median:.2f} | {median / plain:.3f} |")
    share = statistics.median(result["calls"])
    print(f"\nmonitor.step() between windows: {100 * share:.4f} % of a step (median)")
    stall = statistics.median(result["stall_us"]) / 1e6
    print(f"starting and stopping the profiler: {stall / plain:.2f} steps a window (median)")
    windows = len(result["stall_us"]) + result["skipped"]
    extra = sum(
        sum(each) - plain * len(each)
        for kind, each in times.items()
        if kind in ("beside an analysis", "profiled")
    )
    print(
        f"{windows} windows, {result['skipped']} skipped; everything that a window costs: ", end=""
    )
    print(f"{extra / windows / plain:.1f} steps, {extra / windows / plain / 5:.2f} % of 500 steps")


if __name__ == "__main__":
    main()
