"""Compares Megatron-Core, as the lab configures it, with PyTorch's DDP and FSDP2.

    uv run python benchmarks/lab_vs_peers.py                 # two or three minutes on two cores
    uv run python benchmarks/lab_vs_peers.py --rounds 8 --link 400mbit --json
    uv run python benchmarks/lab_vs_peers.py --compare ideal    # what keeps Megatron from the ideal
    uv run python benchmarks/lab_vs_peers.py --compare buckets --link-ratio 0.25 --hidden 512

Two ranks train the lab's GPT on the same data, from the same weights, with the same AdamW and one
microbatch a step, over the same slow link. Its rate is chosen as in the lab. The variants take
turns, so that other load on the machine affects all of them; ratios are those of medians over all
turns. The table also shows how far the losses of each variant are from those of the first.

Intended differences: DDP all-reduces gradients and keeps the full optimizer on every rank.
Megatron-Core's distributed optimizer and FSDP2 reduce-scatter gradients and gather parameters.
FSDP2 gathers them twice, because it frees them after the forward, except in the variant "kept".
FSDP2 hides communication with CUDA streams, which a CPU does not have: it waits for every
collective.

`--compare ideal` takes apart the time between a step and the ideal. "compute alone" skips every
collective of data parallelism, so its losses are of no interest. Variants "unlimited link" train on
a link without a rate: what they take beyond compute alone is the cores' time for the communication,
and what the same variant takes beyond that on the slow link is waiting. `--compare buckets`
compares bucket_size="auto" with fixed numbers of buckets.
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
COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of gradient buckets that are compared with "auto"."""
BUCKET_MB = 1.0
"""For DDP with small buckets; with its default, 25 MB, the model is one bucket."""


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the ranks and combine their measurements."""
    from overlapkit.lab.document import lab_link
    from overlapkit.lab.launch.start import Launch, run_ranks
    from overlapkit.lab.request import link_rate

    rounds, steps, link = given.rounds, given.steps, given.link
    rate = link_rate(link)
    with tempfile.TemporaryDirectory(prefix="lab-vs-peers-") as name:
        folder = Path(name)
        order = {
            "rounds": rounds,
            "steps": steps,
            "rate_mbit": rate,
            "link_ratio": given.link_ratio,
            "compare": given.compare,
            "model": {"num_layers": given.layers, "hidden_size": given.hidden},
        }
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
            "buckets": mine["buckets"],
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
    print("| | ms a step | +/- | ratio | buckets | MB sent a step | losses differ by |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, one in found["variants"].items():
        sent = "" if one["sent_mb"] is None else f"{one['sent_mb']:.1f}"
        print(
            f"| {name} | {one['step_ms']:.0f} | {one['spread_ms']:.0f} | {one['ratio']:.2f} "
            f"| {one['buckets'] or ''} | {sent} | {one['loss_difference']:.0e} |"
        )


@dataclass
class Peer:
    """A way to train: makes one step at a time, and has the losses so far.

    Attributes:
        step: makes one step.
        losses: of the steps so far.
        enter: makes this variant's layout the current one.
        parameters: of the model.
        buckets: gradient buckets of a rank; None where they are not known.
        unlimited: whether it trains on a link without a rate.
    """

    step: Callable[[], None]
    losses: list[Any]
    enter: Callable[[], None] = lambda: None
    parameters: int = 0
    buckets: int | None = None
    unlimited: bool = False


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
    for name, make in _compared(order["compare"], order["model"]).items():
        emit({"event": "build", "what": name})
        torch.manual_seed(1)
        peers[name] = make(tokens)
    rate = order["rate_mbit"]
    network.set_rate(None if rate == "auto" else rate)
    if rate == "auto":
        rate = _chosen(peers[FIRST], order["link_ratio"])
        # So that every variant makes the same number of steps.
        for name, peer in peers.items():
            if name != FIRST:
                _unlimited(peer)
        network.set_rate(rate)
    measured: dict[str, Any] = {name: {"steps": [], "sent": None} for name in peers}
    for turn in range(order["rounds"]):
        for name, peer in peers.items():
            emit({"event": "turn", "what": f"{turn + 1} of {order['rounds']}: {name}"})
            network.set_rate(None if peer.unlimited else rate)
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
        measured[name]["buckets"] = peer.buckets
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


def _chosen(peer: Peer, ratio: float) -> float | None:
    """The rate at which sending takes `ratio` of the peer's step; the same on all ranks."""
    import torch
    import torch.distributed as dist

    seconds, sent = _unlimited(peer)
    if sent is None:
        return None
    worst = torch.tensor([seconds, sent], dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    seconds, sent = worst.tolist()
    return sent * 8 / 1e6 / (seconds * ratio)


def _compared(which: str, model: dict[str, int]) -> dict[str, Callable[[Any], Peer]]:
    """The variants of ``--compare``, by name; each is made from the data."""
    from overlapkit.lab.scenario import DISTRIBUTED_OPTIMIZER, NO_OVERLAP
    from overlapkit.lab.scenarios.dp import BOTH, GRADIENTS

    def megatron(*layers: Any, **more: Any) -> Callable[[Any], Peer]:
        return lambda tokens: _megatron(tokens, {"model": model}, *layers, **more)

    def overlapped(bucket: Any, *layers: Any, **more: Any) -> Callable[[Any], Peer]:
        knobs = {"comm_overlap": {**BOTH["comm_overlap"], "bucket_size": bucket}}
        return megatron(DISTRIBUTED_OPTIMIZER, knobs, *layers, **more)

    first = {FIRST: megatron(DISTRIBUTED_OPTIMIZER, NO_OVERLAP)}
    small = {f"DDP, buckets of {BUCKET_MB:g} MB": lambda tokens: _ddp(tokens, model, BUCKET_MB)}
    if which == "peers":
        return {
            **first,
            "megatron, overlapped": overlapped("auto"),
            "DDP": lambda tokens: _ddp(tokens, model, None),
            **small,
            "FSDP2": lambda tokens: _fsdp(tokens, model, reshard=True),
            "FSDP2, parameters kept": lambda tokens: _fsdp(tokens, model, reshard=False),
        }
    if which == "buckets":
        parameters = _parameters(model)
        counts = {
            f"overlapped, 1/{n} of the model": overlapped(-(-parameters // n)) for n in COUNTS
        }
        return {**first, "overlapped, auto": overlapped("auto"), **counts}
    # All-to-all and a local sum: half of what gloo's own reduce-scatter sends.
    halved = {"ddp": {"reduce_scatter_with_fp32_accumulation": True}}
    reduced = {"ddp": {"overlap_grad_reduce": True, "bucket_size": 262_144}}
    return {
        **first,
        "compute alone": megatron(DISTRIBUTED_OPTIMIZER, NO_OVERLAP, alone=True),
        "no overlap, unlimited link": megatron(DISTRIBUTED_OPTIMIZER, NO_OVERLAP, unlimited=True),
        "overlapped": overlapped("auto"),
        "overlapped, unlimited link": overlapped("auto", unlimited=True),
        "reduction overlapped": megatron(DISTRIBUTED_OPTIMIZER, GRADIENTS),
        "overlapped, all-to-all": overlapped("auto", halved),
        "overlapped, all-to-all, unlimited link": overlapped("auto", halved, unlimited=True),
        "overlapped, no distributed optimizer": megatron(reduced),
        "overlapped, no d. o., unlimited link": megatron(reduced, unlimited=True),
        **small,
    }


def _parameters(model: dict[str, int]) -> int:
    """Parameters of the model that Megatron-Core builds with these sizes."""
    from overlapkit.lab.rank import build
    from overlapkit.lab.scenario import NO_OVERLAP

    config = _configured({"model": model}, NO_OVERLAP)
    build.enter_layout(config)
    return sum(p.numel() for p in config.model.provide().parameters())


def _configured(*layers: Any) -> Any:
    from overlapkit.lab.rank import build
    from overlapkit.lab.scenario import Setting, variant

    # With weight decay, the same parameters would have to be exempt from it everywhere.
    plain = {"optimizer": {"weight_decay": 0.0}}
    return build.configure(variant("peer", Setting(), plain, *layers), "cpu", RANKS)


def _megatron(tokens: Any, *layers: Any, alone: bool = False, unlimited: bool = False) -> Peer:
    from megatron.core.distributed import param_and_grad_buffer as core

    from overlapkit.lab.rank import build
    from overlapkit.lab.rank.trainer import Trainer

    usual = {name: getattr(core, name) for name in FUNCTIONS}
    built = build.build(_configured(*layers), "cpu")
    # reduce_scatter_with_fp32_accumulation replaces the function for every model of the process.
    own = {name: getattr(core, name) for name in FUNCTIONS}
    _replace(usual)
    if alone:
        own = dict.fromkeys(FUNCTIONS, lambda *args, **kwargs: None)
    trainer = Trainer(built, tokens, "cpu")

    def step() -> None:
        _replace(own)
        trainer.step()
        _replace(usual)

    return Peer(
        step,
        trainer.losses,
        trainer.enter,
        parameters=sum(p.numel() for p in built.chunks[0].parameters()),
        buckets=sum(len(group.buckets) for group in built.chunks[0].bucket_groups),
        unlimited=unlimited,
    )


FUNCTIONS = ("dist_reduce_scatter_func", "dist_all_gather_func")
"""Megatron-Core's names for the collectives of the distributed optimizer."""


def _replace(functions: dict[str, Any]) -> None:
    from megatron.core.distributed import param_and_grad_buffer as core

    for name, function in functions.items():
        setattr(core, name, function)


def _bare(tokens: Any, model: dict[str, int]) -> tuple[Any, Any, Any]:
    """The same model, unwrapped; its data; and its configuration."""
    from overlapkit.lab.rank import build
    from overlapkit.lab.rank.trainer import Trainer
    from overlapkit.lab.rank.weights import initialize
    from overlapkit.lab.scenario import NO_OVERLAP

    config = _configured({"model": model}, NO_OVERLAP)
    build.enter_layout(config)
    bare = config.model.provide()
    initialize(bare)
    data = Trainer(build.Built(config, [], None), tokens, "cpu")
    return bare, data, config


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
        data.steps += 1
        losses.append(loss.detach())

    return Peer(step, losses)


def _ddp(tokens: Any, sizes: dict[str, int], bucket_mb: float | None) -> Peer:
    from torch.nn.parallel import DistributedDataParallel

    model, data, config = _bare(tokens, sizes)
    size = {} if bucket_mb is None else {"bucket_cap_mb": bucket_mb}
    return _stepper(
        DistributedDataParallel(model, gradient_as_bucket_view=True, **size), data, config
    )


def _fsdp(tokens: Any, sizes: dict[str, int], *, reshard: bool) -> Peer:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, data, config = _bare(tokens, sizes)
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
    parser.add_argument(
        "--compare", choices=("peers", "ideal", "buckets"), default="peers", help="which variants"
    )
    parser.add_argument(
        "--link-ratio",
        type=float,
        default=LINK_RATIO,
        help="communication over compute at the rate that is chosen without --link",
    )
    parser.add_argument("--layers", type=int, default=4, help="of the model")
    parser.add_argument("--hidden", type=int, default=256, help="size of the model's layers")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(Path(given.rank))
        return
    found = measure(given)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
