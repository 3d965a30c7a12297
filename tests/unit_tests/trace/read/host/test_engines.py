"""Iterations of inference engines, by the names of their ranges."""

from __future__ import annotations

import pytest

from overlapkit.trace.read.host.engines import batch_of, iterations
from support import tiny_trace as tiny
from support.field.engines import vllm_decode
from support.trace_answers import compare_of, trace_of


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("execute_context_0(0)_generation_64(64)", "decode, 64 requests"),
        ("execute_17_context_3(sq128sk256)_generation_0()", "prefill, 3 requests"),
        (
            "execute_context_2(4096)_generation_5(5)",
            "prefill of 2 and decode of 5 requests",
        ),
        ("step[DECODE bs=1]", "decode, 1 request"),
        ("step[EXTEND bs=2 toks=107]", "prefill, 2 requests"),
        ("step[TARGET_VERIFY bs=8]", "target verify, 8 requests"),
        ("[Executor] _forward_step: 1 ctx reqs, 0 gen reqs", "prefill, 1 request"),
        (
            "[Executor] _forward_step 6: 0 ctx reqs, 0 ctx tokens, 32 gen reqs",
            "decode, 32 requests",
        ),
        ("gpu_model_runner: forward", ""),
        ("gpu_model_runner: sample", None),
        ("step 12", None),
        ("ProfilerStep#3", None),
        ("execute_model", None),
    ],
)
def test_a_range_names_its_batch(name, batch):
    assert batch_of(name) == batch


def test_ranges_that_name_a_batch_come_before_those_inside_them():
    decode, forward = "step[DECODE bs=1]", "gpu_model_runner: forward"
    ranges = [(forward, 12, 18), (decode, 10, 20), (decode, 30, 40), (forward, 50, 60)]
    assert iterations(ranges) == [(decode, 10, 20), (decode, 30, 40)]
    assert iterations([(forward, 12, 18)]) == [(forward, 12, 18)]


def test_steps_of_the_profiler_come_before_iterations(tmp_path):
    machine = vllm_decode(3)
    for index, event in enumerate(list(machine.events)):
        if event["name"].startswith("execute_context") and event["cat"] == "user_annotation":
            machine.events.append({**event, "name": f"ProfilerStep#{index}"})
    (rank,) = trace_of(machine.write(tmp_path / "t.json")).document["ranks"]
    assert (rank["steps_from"], rank["unit"], len(rank["steps"])) == ("ranges", "step", 3)


def test_without_launches_nothing_says_where_an_iteration_is_on_the_device(tmp_path):
    machine = vllm_decode(3)
    machine.events = [e for e in machine.events if e["cat"] != "cuda_runtime"]
    (rank,) = trace_of(machine.write(tmp_path / "t.json")).document["ranks"]
    assert rank["steps_from"] != "iterations"


def test_a_wait_for_requests_belongs_to_no_iteration(tmp_path):
    machine = vllm_decode(2)
    machine.spend(50_000)
    later = vllm_decode(2)
    later.now = machine.now
    for event in later.events:
        event["ts"] += machine.now - later.dialect.origin_us
        if "correlation" in event.get("args", {}):
            event["args"]["correlation"] += 1000
    machine.events += later.events
    (rank,) = trace_of(machine.write(tmp_path / "t.json")).document["ranks"]
    assert len(rank["steps"]) == 4
    assert all(step["step_us"] < 3000 for step in rank["steps"])


@pytest.mark.parametrize(
    ("requests", "all_reduce_us", "verdict", "says"),
    [
        (64, 9, "same", "No change larger than 1 %"),
        (64, 30, "slower", "Slower by more than 1 %"),
        (32, 30, "unknown", "decode, 64 requests; decode, 32 requests"),
    ],
)
def test_iterations_of_one_batch_are_compared(requests, all_reduce_us, verdict, says, tmp_path):
    base = vllm_decode(10).write(tmp_path / "a.json")
    other = vllm_decode(10, requests=requests, all_reduce_us=all_reduce_us)
    answer = compare_of(base, other.write(tmp_path / "b.json"))
    assert answer.document["verdict"] == verdict
    assert says in answer.text
    assert "ms an iteration" in answer.text
    assert "step" not in answer.text


def test_a_name_that_looks_like_one_is_no_iteration_without_work(tmp_path):
    range_ = {"ph": "X", "cat": "user_annotation", "pid": 1, "tid": 2, "ts": 5, "dur": 3}
    events = [tiny.kernel(tiny.GEMM, 1000, 100), {**range_, "name": "step[DECODE bs=1]"}]
    (rank,) = trace_of(tiny.write(tmp_path / "t.json", events)).document["ranks"]
    assert rank["steps_from"] is None
