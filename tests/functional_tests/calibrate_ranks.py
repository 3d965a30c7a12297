"""Two ranks that are profiled with shapes: `python calibrate_ranks.py FOLDER`.

Each writes its profile and, as JSON, what the profiler itself says of the times of operators.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

RANKS = 2
ROUNDS = 3


def work(linear: torch.nn.Linear) -> None:
    """A linear layer, attention and collectives, both ways."""
    linear(torch.randn(64, 256, requires_grad=True)).relu().sum().backward()
    heads = torch.randn(2, 4, 128, 64, requires_grad=True)
    F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).sum().backward()
    whole, part = torch.zeros(4096), torch.zeros(4096 // RANKS)
    dist.all_reduce(whole)
    dist.all_gather_into_tensor(whole, part)
    dist.all_to_all_single(torch.zeros(4096), whole)


def run(rank: int, folder: str, port: int) -> None:
    """One rank."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    linear = torch.nn.Linear(256, 512)
    work(linear)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(ROUNDS):
            work(linear)
    profiler.export_chrome_trace(f"{folder}/rank{rank}.json.gz")
    times = defaultdict(list)
    for event in profiler.events():
        times[event.name].append(event.time_range.elapsed_us())
    Path(folder, f"times{rank}.json").write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, args=(sys.argv[1], port), nprocs=RANKS)
