"""DistributedDataParallel over gloo with the overlap monitor: what test_monitor.py starts.

    python tests/functional_tests/monitor_ranks.py FOLDER

Every rank writes its reports to ``rank<N>.json`` in FOLDER. In the last window, rank 1 takes much
longer to compute. Steps are long enough that what runs between two of them does not matter.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from overlapkit.monitor import OverlapMonitor, OverlapReport

RANKS = 2
EVERY = 4
WINDOWS = 5


def train(rank: int, folder: str) -> None:
    """Train as `rank`, and write what the monitor reports."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    layers = [torch.nn.Linear(512, 512) for _ in range(4)]
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(*layers), bucket_cap_mb=0.8
    )
    optimizer = torch.optim.AdamW(model.parameters())
    reports: list[OverlapReport] = []
    with OverlapMonitor(every=EVERY, steps=1, report=reports.append) as monitor:
        for step in range(1, EVERY * WINDOWS + 2):
            if rank == 1 and step > EVERY * WINDOWS:
                time.sleep(3.0)
            optimizer.zero_grad()
            model(torch.randn(256, 512)).square().mean().backward()
            optimizer.step()
            monitor.step()
            if step % EVERY == 1 and monitor._analysis is not None:
                monitor._analysis.wait(300)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    dist.destroy_process_group()
    Path(folder, f"rank{rank}.json").write_bytes(msgspec.json.encode(reports))
    torch.save(weights, Path(folder, f"rank{rank}.pt"))


if __name__ == "__main__":
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], GLOO_SOCKET_IFNAME="lo")
    mp.spawn(train, args=(sys.argv[1],), nprocs=RANKS)
