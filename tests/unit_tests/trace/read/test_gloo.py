"""Profiles of ranks that share a GPU: kernels on the device, gloo on the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from overlapkit.trace.analyse import analyse_each
from overlapkit.trace.rank_report import Options, RankReport


def _event(name: str, category: str, start: float, length: float, **more: Any) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": 1,
        "tid": 1,
        "ts": start,
        "dur": length,
        **more,
    }


def _kernel(name: str, start: float, length: float) -> dict[str, Any]:
    args = {"device": 0, "stream": 7, "correlation": int(start)}
    return _event(name, "kernel", start, length, pid=0, tid=7, args=args)


def _report(folder: Path, backend: str, *events: dict[str, Any]) -> RankReport:
    path = folder / "trace.rank0.json"
    info = {"backend": backend, "rank": 0, "world_size": 2}
    path.write_text(json.dumps({"distributedInfo": info, "traceEvents": list(events)}))
    ((report,),) = analyse_each([str(path)], Options())
    return report


STEP = _event("ProfilerStep#1", "user_annotation", 1000, 1000)
DEVICE_STEP = _event("ProfilerStep#1", "gpu_user_annotation", 1000, 1000, pid=0, tid=7)
GEMM = _kernel("ampere_sgemm_128x64", 1100, 400)
GLOO = _event("gloo:reduce_scatter", "cpu_op", 1300, 400, tid=9)


def test_gloo_on_the_host_is_the_communication_of_a_device_without_any(tmp_path: Path) -> None:
    (times,) = _report(tmp_path, "gloo", STEP, DEVICE_STEP, GEMM, GLOO).measured
    # 1300 to 1700 µs, beside the kernel until 1500.
    assert times.comm == 400_000
    assert times.exposed_comm == 200_000
    assert times.compute == 400_000


def test_communication_of_the_device_itself_is_left_alone(tmp_path: Path) -> None:
    nccl = _kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 1600, 100)
    (times,) = _report(tmp_path, "gloo", STEP, DEVICE_STEP, GEMM, GLOO, nccl).measured
    assert times.comm == 100_000


def test_gloo_beside_nccl_is_no_communication_of_the_device(tmp_path: Path) -> None:
    (times,) = _report(tmp_path, "nccl", STEP, DEVICE_STEP, GEMM, GLOO).measured
    assert times.comm == 0
