"""Traces without device work: what is compute and what is communication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from support import tiny_trace

TRAINER, WORKER = 11, 12


def _range(name: str, ts: float, dur: float, thread: int, cat: str) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": thread, "ts": ts, "dur": dur}


def _operator(name: str, ts: float, dur: float) -> dict[str, Any]:
    return _range(name, ts, dur, TRAINER, "cpu_op")


def _step(dur: float) -> dict[str, Any]:
    return _range("ProfilerStep#1", 0, dur, TRAINER, "user_annotation")


def _times(tmp_path: Path, events: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    path = tiny_trace.write(tmp_path / "rank0.json", events)
    (report,) = analyse_file(path, Options())
    (times,) = report.steps
    return tuple(ns / 1000 for ns in (times.compute, times.comm, times.exposed_comm, times.idle))  # type: ignore[return-value]


def test_compute_within_an_asynchronous_receive_hides_it(tmp_path: Path) -> None:
    events = [
        _step(100),
        _operator("c10d::recv_", 0, 2),
        # Posted at 2 and waited for until 60, on the trainer's own thread.
        _range("gloo:recv", 2, 58, TRAINER, "user_annotation"),
        _operator("aten::mm", 10, 30),
        _operator("aten::mm", 70, 20),
    ]
    compute, comm, exposed, idle = _times(tmp_path, events)
    assert (compute, comm, exposed) == (50, 58, 28)
    assert idle == 100 - compute - exposed


def test_waiting_inside_a_launch_is_neither_compute_nor_hides_anything(tmp_path: Path) -> None:
    events = [
        _step(100),
        _operator("c10d::send", 0, 40),
        _range("gloo:send", 1, 39, TRAINER, "user_annotation"),
        _operator("aten::mm", 40, 50),
    ]
    assert _times(tmp_path, events) == (50, 39, 39, 11)


def test_a_worker_threads_collective_is_hidden_by_the_trainers_compute(tmp_path: Path) -> None:
    events = [
        _step(100),
        _operator("c10d::allreduce_", 0, 1),
        _range("gloo:all_reduce", 5, 60, WORKER, "user_annotation"),
        # Adding up what arrived is no compute of the model.
        _range("aten::add_", 20, 10, WORKER, "cpu_op"),
        _operator("aten::mm", 30, 20),
    ]
    assert _times(tmp_path, events) == (20, 60, 40, 40)


def test_waiting_inside_a_function_of_autograd_is_not_compute(tmp_path: Path) -> None:
    events = [
        _step(100),
        # Gathers its input, waits for it, multiplies.
        _operator("ColumnParallelLinear", 0, 80),
        _operator("c10d::_allgather_base_", 1, 2),
        _range("gloo:all_gather", 3, 37, WORKER, "user_annotation"),
        _operator("aten::empty", 5, 5),
        _operator("aten::mm", 45, 30),
    ]
    compute, comm, exposed, _ = _times(tmp_path, events)
    # 80 without the launch (2) and what is waited while the gather is under way (37 - 5).
    assert (compute, comm, exposed) == (46, 37, 32)
