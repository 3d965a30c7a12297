"""What every rank runs: `python -m overlapkit.lab.rank.__main__ FOLDER`, under torchrun.

Reads the job in FOLDER, trains its variants and leaves the results there.
"""

from __future__ import annotations

from overlapkit.lab.link import rank_side as network

if __name__ == "__main__":
    # Before torch is imported: existing threads would stay in the old network namespace.
    network.join()

import gc
import os
import sys
import warnings
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from overlapkit.lab import corpus
from overlapkit.lab.events import emit
from overlapkit.lab.protocol import JOB_FILE, Job, result_file


def run(folder: Path) -> None:
    """Run every block of the job in `folder`."""
    job = msgspec.json.decode((folder / JOB_FILE).read_bytes(), type=Job)
    rank = int(os.environ["RANK"])
    emit({"event": "importing"})
    if job.device == "cpu":
        _connect_cpus()
    else:
        _connect_gpus()
    # Imported here, after the stand-in for CUDA: it imports the rest of Megatron-Core.
    from overlapkit.lab.rank.block import RankBlock

    tokens = corpus.read(job.corpus) if job.corpus else corpus.synthetic()
    warnings.filterwarnings("ignore")
    emit({"event": "ready"})
    for number, block in enumerate(job.blocks):
        worker = RankBlock(block, job=job, number=number, folder=folder, rank=rank, tokens=tokens)
        result = worker.run()
        (folder / result_file(number, rank)).write_bytes(msgspec.json.encode(result))
        del worker
        gc.collect()
    emit({"event": "done"})
    dist.destroy_process_group()


def _connect_cpus() -> None:
    from overlapkit.lab.rank.cuda_stand_in import stand_in_for_cuda
    from overlapkit.lab.rank.uneven import allow_uneven_sizes

    # One thread on every machine: another order of addition gives other bits.
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    stand_in_for_cuda()
    allow_uneven_sizes()


def _connect_gpus() -> None:
    # Ranks of this node: a job can have several nodes.
    enough = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if enough else 0)
    dist.init_process_group("nccl" if enough else "gloo")
    if not enough:
        from overlapkit.lab.rank.shared_gpu import exchange_through_memory

        exchange_through_memory()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
