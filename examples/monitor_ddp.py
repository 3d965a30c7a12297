"""A training loop with the overlap monitor: DistributedDataParallel on CPUs or GPUs.

torchrun --nproc-per-node 2 examples/monitor_ddp.py
"""

import torch
import torch.distributed as dist

from overlapkit.monitor import OverlapMonitor


def main() -> None:
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count()) if gpu else "cpu"
    layers = [torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU()) for _ in range(6)]
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(*layers).to(device), bucket_cap_mb=0.25
    )
    optimizer = torch.optim.AdamW(model.parameters())
    with OverlapMonitor(every=50, steps=2, report=print, ranks=[0]) as monitor:
        for _ in range(200):
            optimizer.zero_grad()
            model(torch.randn(512, 256, device=device)).square().mean().backward()
            optimizer.step()
            monitor.step()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
