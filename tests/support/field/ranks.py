"""Ranks that several situations share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import tiny_trace as tiny
from support.field.machine import TORCH_2_6, Machine
from support.field.training import ddp

_MODEL = (
    "num_layers: 8, hidden_size: 1024, num_attention_heads: 16, seq_length: 2048, vocab_size: 32000"
)


def ddp_rank(rank: int = 0, world: int = 8, **given: Any) -> Machine:
    group = ("0", "default_pg", list(range(world)))
    return ddp(Machine(TORCH_2_6, rank=rank, world=world, groups=[group]), **given)


def configuration(folder: Path, model: str, rest: str = "", name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(f"model: {{{_MODEL}{model}}}\n{rest}\n")
    return str(path)


def host_range(
    name: str, ts: float, dur: float, cat: str = "cpu_op", tid: int = 1
) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": ts, "dur": dur}


def cpu_ranks(folder: Path) -> str:
    """CPU ranks over gloo, half of whose step is Python."""
    events = []
    for n in range(3):
        at = 1000.0 + 2000 * n
        events += [
            host_range(f"ProfilerStep#{n}", at, 2000, "user_annotation"),
            host_range("aten::mm", at + 10, 700),
            host_range("gloo:all_reduce", at + 600, 300, tid=5),
        ]
    return tiny.write(folder / "cpu.json", events)
