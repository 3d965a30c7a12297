"""Compares Megatron-Core, as the lab configures it, with PyTorch's DDP and FSDP2.

    uv run python benchmarks/lab_vs_peers.py                 # two or three minutes on two cores
    uv run python benchmarks/lab_vs_peers.py --rounds 8 --link 400mbit --json

Two ranks train the lab's GPT on the same data, from the same weights, with the same AdamW and one
microbatch a step, over the same slow link. Its rate is chosen as in the lab. The variants take
turns, so that other load on the machine affects all of them; ratios are those of medians over all
turns. The table also shows how far the losses of each variant are from those of the first.

Intended differences: DDP all-reduces gradients and keeps the full optimizer on every rank.
Megatron-Core's distributed optimizer and FSDP2 reduce-scatter gradients and gather parameters.
FSDP2 gathers them twice, because it frees them after the forward, except in the variant "kept".
FSDP2 hides communication with CUDA streams, which a CPU does not have: it waits for every
collective.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1:2] == ["--rank"]:
    # In a rank, before torch is imported: existing threads would stay in the old network.
    from overlapkit.lab.link import rank_side as network

    network.join()

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).resolve()
RANKS = 2
LINK_RATIO = 0.75
"""Communication over compute at the chosen rate of the link; the same as in the lab."""
FIRST = "megatron, no overlap"
BUCKET_MB = 1.0
"""For DDP with small buckets; with its default, 25 MB, the model is one bucket."""


def measure(rounds: int, steps: int, link: str | None) -> dict[str, Any]:
    """Run the ranks and combine their measurements."""
    from overlapkit.lab.document import lab_link
    from overlapkit.lab.launch.start import Launch, run_ranks
    from overlapkit.lab.request import link_rate

    rate = link_rate(link)
    with tempfile.TemporaryDirectory(prefix="lab-vs-peers-") as name:
        folder = Path(name)
        order = {"rounds": rounds, "steps": steps, "rate_mbit": rate}
        (folder / "order.json").write_text(json.dumps(order))
        used = run_ranks(
            Launch(
                ranks=RANKS,
                module=HERE.stem,
                args=("--rank", str(folder)),
                folder=folder,
                environment={"PYTHONPATH": str(HERE.parent)},
                link="none" if link == "none" else "shaped",
                timeout_s=3600.0,
                silence_s=600.0,
            ),
            lambda event: _progress(event.rank, event.data),
        )
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    variants = {}
    for name, mine in ranks[0]["variants"].items():
        both = [rank["variants"][name] for rank in ranks]
        lengths = [max(pair) for pair in zip(*(one["steps"] for one in both), strict=True)]
        variants[name] = {
            "steps_ms": [round(1e3 * length, 2) for length in lengths],
            "step_ms": round(1e3 * statistics.median(lengths), 2),
            "spread_ms": round(1e3 * _half_iqr(lengths), 2),
            "sent_mb": _largest([one["sent"] for one in both]),
            "losses": mine["losses"],
        }
    base = variants[FIRST]
    for one in variants.values():
        one["ratio"] = round(one["step_ms"] / base["step_ms"], 3)
        pairs = zip(one["losses"], base["losses"], strict=True)
        one["loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
    return {
        "machine": {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "platform": platform.platform(),
            "load_before": ranks[0]["load"],
            **{package: version(package) for package in ("torch", "megatron-core", "overlapkit")},
        },
        "link": {
            **msgspec.structs.asdict(lab_link(used)),
            "rate_mbit": ranks[0]["rate_mbit"] if used.shaped else None,
        },
        "parameters": ranks[0]["parameters"],
        "variants": variants,
    }


def _half_iqr(lengths: list[float]) -> float:
    if len(lengths) < 3:
        return (max(lengths) - min(lengths)) / 2
    low, _, high = statistics.quantiles(lengths, n=4, method="inclusive")
    return (high - low) / 2


def _largest(sent: list[float | None]) -> float | None:
    known = [each for each in sent if each is not None]
    return round(max(known) / 1e6, 2) if known else None


def _progress(rank: int, event: dict[str, Any]) -> None:
    if rank == 0 and sys.stderr.isatty():
        print(f"\r\033[K{event.get('event')} {event.get('what', '')}", end="", file=sys.stderr)


def show(found: dict[str, Any]) -> None:
    """Print the document as Markdown."""
    machine, link = found["machine"], found["link"]
    rate = "unlimited" if link["rate_mbit"] is None else f"{link['rate_mbit']:.0f} Mbit/s"
    print(f"- {machine['processor']}, {machine['cores']} cores, {machine['platform']}")
    print(f"- load before the runs: {machine['load_before']:.1f}")
    print(f"- torch {machine['torch']}, megatron-core {machine['megatron-core']}")
    print(f"- link ({link['kind']}): {rate}; {found['parameters']:,} parameters\n")
    print("| | ms a step | +/- | ratio | MB sent a step | losses differ by |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, one in found["variants"].items():
        sent = "" if one["sent_mb"] is None else f"{one['sent_mb']:.1f}"
        print(
            f"| {name} | {one['step_ms']:.0f} | {one['spread_ms']:.0f} | {one['ratio']:.2f} "
            f"| {sent} | {one['loss_difference']:.0e} |"
        )


@dataclass
class Peer:
    """A way to train: makes one step at a time, and has the losses so far."""

    step: Callable[[], None]
    losses: list[Any]
    enter: Callable[[], None] = lambda: None
    parameters: int = 0


def rank(folder: Path) -> None:
    """Train all variants; run by each of the two processes."""
    import torch
    import torch.distributed as dist

    from overlapkit.lab import corpus
    from overlapkit.lab.launch.start import emit
    from overlapkit.lab.link import rank_side as network
    from overlapkit.lab.rank.cuda_stand_in import stand_in_for_cuda

    order = json.loads((folder / "order.json").read_text())
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tokens = corpus.synthetic()
    stand_in_for_cuda()
    peers: dict[str, Peer] = {}
    for name, make in _variants().items():
        emit({"event": "build", "what": name})
        torch.manual_seed(1)
        peers[name] = make(tokens)
    rate = order["rate_mbit"]
    network.set_rate(None if rate == "auto" else rate)
    if rate == "auto":
        rate = _chosen(peers[FIRST])
        # So that every variant makes the same number of steps.
        for name, peer in peers.items():
            if name != FIRST:
                _unlimited(peer)
        network.set_rate(rate)
    measured: dict[str, Any] = {name: {"steps": [], "sent": None} for name in peers}
    for turn in range(order["rounds"]):
        for name, peer in peers.items():
            emit({"event": "turn", "what": f"{turn + 1} of {order['rounds']}: {name}"})
            peer.enter()
            peer.step()
            dist.barrier()
            before = network.sent_bytes()
            for _ in range(order["steps"]):
                start = time.perf_counter()
                peer.step()
                measured[name]["steps"].append(time.perf_counter() - start)
            after = network.sent_bytes()
            if before is not None and after is not None:
                measured[name]["sent"] = (after - before) / order["steps"]
            dist.barrier()
    for name, peer in peers.items():
        measured[name]["losses"] = [float(loss) for loss in peer.losses]
    result = {"variants": measured, "rate_mbit": rate, "load": load}
    result["parameters"] = peers[FIRST].parameters
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def _unlimited(peer: Peer) -> tuple[float, int | None]:
    """Seconds of a step, and bytes that it sends; makes three steps."""
    from overlapkit.lab.link import rank_side as network

    peer.enter()
    peer.step()
    start, before = time.perf_counter(), network.sent_bytes()
    for _ in range(2):
        peer.step()
    seconds, after = (time.perf_counter() - start) / 2, network.sent_bytes()
    return seconds, None if before is None or after is None else (after - before) // 2


def _chosen(peer: Peer) -> float | None:
    """The rate at which sending takes LINK_RATIO of the peer's step; the same on all ranks."""
    import torch
    import torch.distributed as dist

    seconds, sent = _unlimited(peer)
    if sent is None:
        return None
    worst = torch.tensor([seconds, sent], dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    seconds, sent = worst.tolist()
    return sent * 8 / 1e6 / (seconds * LINK_RATIO)


def _variants() -> dict[str, Callable[[Any], Peer]]:
    from overlapkit.lab.scenario import DISTRIBUTED_OPTIMIZER, NO_OVERLAP
    from overlapkit.lab.scenarios.dp import BOTH

    return {
        FIRST: lambda tokens: _megatron(tokens, DISTRIBUTED_OPTIMIZER, NO_OVERLAP),
        "megatron, overlapped": lambda tokens: _megatron(tokens, DISTRIBUTED_OPTIMIZER, BOTH),
        "DDP": lambda tokens: _ddp(tokens, None),
        f"DDP, buckets of {BUCKET_MB:g} MB": lambda tokens: _ddp(tokens, BUCKET_MB),
        "FSDP2": lambda tokens: _fsdp(tokens, reshard=True),
        "FSDP2, parameters kept": lambda tokens: _fsdp(tokens, reshard=False),
    }


def _configured(*layers: Any) -> Any:
    from overlapkit.lab.rank import build
    from overlapkit.lab.scenario import Setting, variant

    # With weight decay, the same parameters would have to be exempt from it everywhere.
    plain = {"optimizer": {"weight_decay": 0.0}}
    return build.configure(variant("peer", Setting(), plain, *layers), "cpu", RANKS)


def _megatron(tokens: Any, *layers: Any) -> Peer:
    from overlapkit.lab.rank import build
    from overlapkit.lab.rank.trainer import Trainer

    built = build.build(_configured(*layers), "cpu")
    trainer = Trainer(built, tokens, "cpu")
    parameters = sum(p.numel() for p in built.chunks[0].parameters())
    return Peer(trainer.step, trainer.losses, trainer.enter, parameters)


def _bare(tokens: Any) -> tuple[Any, Any, Any]:
    """The same model, unwrapped; its data; and its configuration."""
    from overlapkit.lab.rank import build
    from overlapkit.lab.rank.trainer import Trainer
    from overlapkit.lab.rank.weights import initialize
    from overlapkit.lab.scenario import NO_OVERLAP

    config = _configured(NO_OVERLAP)
    build.enter_layout(config.model)
    model = config.model.provide()
    initialize(model)
    data = Trainer(build.Built(config, [], None), tokens, "cpu")
    return model, data, config


def _stepper(model: Any, data: Any, config: Any) -> Peer:
    """Forward, backward and torch's own AdamW."""
    import torch

    given = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=given.lr,
        betas=(given.adam_beta1, given.adam_beta2),
        eps=given.adam_eps,
        weight_decay=given.weight_decay,
    )
    losses: list[Any] = []

    def step() -> None:
        optimizer.zero_grad()
        inputs, labels = data._samples(0)
        loss = model(inputs, data._positions, data._mask, labels=labels).float().mean()
        loss.backward()
        optimizer.step()
        data._steps += 1
        losses.append(loss.detach())

    return Peer(step, losses)


def _ddp(tokens: Any, bucket_mb: float | None) -> Peer:
    from torch.nn.parallel import DistributedDataParallel

    model, data, config = _bare(tokens)
    size = {} if bucket_mb is None else {"bucket_cap_mb": bucket_mb}
    return _stepper(
        DistributedDataParallel(model, gradient_as_bucket_view=True, **size), data, config
    )


def _fsdp(tokens: Any, *, reshard: bool) -> Peer:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, data, config = _bare(tokens)
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.decoder.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    return _stepper(model, data, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn")
    parser.add_argument("--link", help="rate of the link, such as 400mbit, or none")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(Path(given.rank))
        return
    found = measure(given.rounds, given.steps, given.link)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
