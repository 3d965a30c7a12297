"""Two ways in which Megatron-Core's pipeline silently trains on other numbers: a reproduction.

    uv run torchrun --nproc-per-node 2 docs/evidence/pipeline_hazards.py FILE.json

Trains the lab's tiny model in two interleaved stages for one step, in the way that is right
(overlapped p2p, bit-identical to the unpartitioned model: lab-grid.json) and in ways that are not,
and counts which messages arrive as something else than was sent, and which gradients differ.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from overlapkit.lab import corpus
from overlapkit.lab.protocol import Variant
from overlapkit.lab.rank import build
from overlapkit.lab.rank.cuda_stand_in import stand_in_for_cuda
from overlapkit.lab.rank.trainer import Trainer
from overlapkit.lab.scenario import TINY, layered

BATCHED = {"model.overlap_p2p_comm": False, "model.batch_p2p_comm": True}
FREED = {"model.deallocate_pipeline_outputs": True}
CASES = (
    # claim, virtual stages, microbatches, what is forced past the rules
    ("batched p2p", 2, 2, BATCHED),
    ("batched p2p", 2, 4, BATCHED),
    ("batched p2p", 2, 8, BATCHED),
    ("batched p2p", 4, 4, BATCHED),
    ("overlapped p2p, deallocate_pipeline_outputs", 2, 2, FREED),
    ("overlapped p2p, deallocate_pipeline_outputs", 2, 4, FREED),
    ("overlapped p2p, deallocate_pipeline_outputs", 2, 8, FREED),
)

Messages = dict[str, list[str]]


def record(into: Messages) -> None:
    """Note every tensor that this rank sends, and, where the call waits for it, receives."""
    plain = P2PCommunicator._communicate

    def noted(self: Any, **call: Any) -> Any:
        for way in ("next", "prev"):
            if (sent := call[f"tensor_send_{way}"]) is not None:
                into[f"sent {way}"].append(_hash(sent))
        result = plain(self, **call)
        if call.get("wait_on_reqs", True):
            for way, received in zip(("prev", "next"), result[:2], strict=True):
                if received is not None:
                    into[f"from {way}"].append(_hash(received))
        return result

    P2PCommunicator._communicate = noted


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def gradients(vpp: int, microbatches: int, force: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Of one step over this rank's stages."""
    settings = layered(
        TINY,
        {
            "model": {
                "num_layers": max(4, 2 * vpp),
                "pipeline_model_parallel_size": 2,
                "virtual_pipeline_model_parallel_size": vpp,
            },
            "train": {"global_batch_size": microbatches},
            "comm_overlap": {"tp_comm_overlap": False},
        },
    )
    variant = Variant(name="hazard", settings=settings, force=force)
    built = build.build(build.configure(variant, "cpu", 2), "cpu")
    trainer = Trainer(built, corpus.synthetic(), "cpu")
    for chunk in built.chunks:
        chunk.zero_grad_buffer()
    trainer.accumulate()
    return trainer.gradients()


def seen(case: tuple[str, int, int, dict[str, Any]], messages: Messages) -> dict[str, Any]:
    """What a case does, over both ranks."""
    claim, vpp, microbatches, force = case
    right = gradients(vpp, microbatches, {})
    for log in messages.values():
        log.clear()
    wrong = gradients(vpp, microbatches, force)
    mine = {
        "messages": {kind: list(log) for kind, log in messages.items()},
        "gradients": len(right),
        "differing": sum(not torch.equal(right[name], wrong[name]) for name in right),
        "not finite": sum(not bool(torch.isfinite(wrong[name]).all()) for name in right),
    }
    ranks: list[Any] = [None, None]
    dist.all_gather_object(ranks, mine)
    result = {
        "case": claim,
        "pipeline stages": 2,
        "virtual stages": vpp,
        "microbatches": microbatches,
        **{
            name: sum(rank[name] for rank in ranks)
            for name in ("gradients", "differing", "not finite")
        },
    }
    logs = [rank["messages"] for rank in ranks]
    result["messages"] = sum(len(log[f"sent {way}"]) for log in logs for way in ("next", "prev"))
    if force is BATCHED:
        # An activation is sent to the next stage and comes from the previous one.
        result["messages that arrive as another"] = sum(
            sent != received
            for sender, receiver in ((0, 1), (1, 0))
            for there, here in (("sent next", "from prev"), ("sent prev", "from next"))
            for sent, received in zip(logs[sender][there], logs[receiver][here], strict=True)
        )
    return result


def main() -> None:
    """Run every case and write what was seen."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    stand_in_for_cuda()
    messages: Messages = {kind: [] for kind in ("sent next", "sent prev", "from next", "from prev")}
    record(messages)
    found = [seen(case, messages) for case in CASES]
    if dist.get_rank() == 0:
        document = {
            "command": "uv run torchrun --nproc-per-node 2 docs/evidence/pipeline_hazards.py "
            "docs/evidence/pipeline-hazards.json",
            "versions": {name: version(name) for name in ("torch", "megatron-core")},
            "backend": "gloo, two processes on one machine",
            "cases": found,
        }
        Path(sys.argv[1]).write_text(json.dumps(document, indent=2) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
