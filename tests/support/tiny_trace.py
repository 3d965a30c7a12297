"""Small Kineto traces, written event by event, in microseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GEMM = "nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT"
REDUCE_SCATTER = "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
ALL_GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"


def kernel(name: str, ts: Any, dur: Any, stream: Any = 7, **more: Any) -> dict[str, Any]:
    """A kernel on device 0; `more` goes to its arguments, or replaces a key of the event."""
    event: dict[str, Any] = {
        "ph": "X",
        "cat": more.pop("cat", "kernel"),
        "name": name,
        "pid": more.pop("pid", 0),
        "tid": more.pop("tid", stream),
        "ts": ts,
        "dur": dur,
        "args": {"device": 0, "stream": stream, **more},
    }
    return event


def step(number: int, ts: float, dur: float, cat: str = "gpu_user_annotation") -> dict[str, Any]:
    """A ProfilerStep range."""
    pid = 0 if cat.startswith("gpu") else 4000
    name = f"ProfilerStep#{number}"
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": 7, "ts": ts, "dur": dur}


def document(events: list[Any], **head: Any) -> dict[str, Any]:
    """A complete trace."""
    return {"schemaVersion": 1, **head, "traceEvents": events}


def write(path: Path, events: list[Any], **head: Any) -> str:
    """Write a trace; returns its path."""
    path.write_text(json.dumps(document(events, **head)), encoding="utf-8")
    return str(path)
