"""What `overlapkit.monitor` costs a training: DistributedDataParallel on CPU ranks over gloo.

    uv run python benchmarks/monitor_overhead.py [--steps N] [--every N] [--ranks N]

In one run, blocks of five steps take turns, in random order: without the monitor, without it again,
and with it. The second shows how far equal steps differ on this machine. Each step of rank 0 is of
one of these kinds, or profiled, or beside an analysis of any rank. The ratios of the medians are
what to quote: absolute times depend on the machine and on what else it does. The analysis needs a
core of its own; where the ranks keep all of them busy, it takes longer.
"""

from __future__ import annotations

import argparse
import os
import random
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
TURNS = ["without", "without, again", "between windows"]
KINDS = [*TURNS, "beside an analysis", "profiled"]
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
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    calls: list[float] = []
    reports: list[OverlapReport] = []
    # The same in every rank.
    order = random.Random(0)
    turns: list[str] = []
    recording = analysing = False
    with OverlapMonitor(every=options.every, steps=PROFILED, report=reports.append) as monitor:
        for _ in range(options.steps):
            turns = turns or [k for k in order.sample(TURNS, len(TURNS)) for _ in range(BLOCK)]
            kind = "profiled" if recording else "beside an analysis" if analysing else turns.pop()
            begin = time.perf_counter()
            step()
            trained = time.perf_counter()
            if kind not in ("without", "without, again"):
                monitor.step()
            end = time.perf_counter()
            recording, analysing = any_rank(
                monitor._recording is not None, monitor._analysis is not None
            )
            if kind == "between windows":
                # The start of a window is part of the step that waits for it.
                kind = "profiled" if recording else kind
                calls.append((end - trained) / (end - begin))
            times[kind].append(end - begin)
    dist.destroy_process_group()
    if rank == 0:
        result = {
            "times": times,
            "calls": calls,
            "stall_us": [r.stall_us for r in reports],
            "skipped": monitor.skipped,
        }
        Path(folder, "result.json").write_bytes(msgspec.json.encode(result))


def any_rank(*holds: bool) -> list[bool]:
    """Whether each holds in any rank: what others analyse is beside this one's steps too."""
    flags = torch.tensor(holds, dtype=torch.float32)
    dist.all_reduce(flags)
    return [value > 0 for value in flags.tolist()]


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
    for kind in KINDS:
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
