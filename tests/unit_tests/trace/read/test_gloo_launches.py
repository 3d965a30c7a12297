"""Which operators launched gloo's ranges, where that is certain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overlapkit.trace.read.gloo_launches import launches_of
from overlapkit.trace.read.recorded import HostRanges
from support.field.ranks import host_range
from support.trace_answers import trace_of

TRAINER, WORKER, OTHER = (1, 1), (1, 71), (1, 72)
TRACES = Path(__file__).parents[3] / "data" / "traces"


def matched(*ranges: tuple[str, tuple[int, int], int, int], stack=lambda i: i) -> dict[int, int]:
    """The launches of ranges, each with name, thread, start and end."""
    host = HostRanges()
    for name, thread, start, end in ranges:
        host.add(name, "cpu_op", thread, (start, end))
    gloo = [i for i, name in enumerate(host.names) if name.startswith("gloo:")]
    return launches_of(host, gloo, stack)


def reduce_at(start: int) -> tuple[str, tuple[int, int], int, int]:
    return "c10d::allreduce_", TRAINER, start, start + 5


def worker_at(start: int, end: int, thread=WORKER) -> tuple[str, tuple[int, int], int, int]:
    return "gloo:all_reduce", thread, start, end


def test_one_after_the_other():
    assert matched(reduce_at(0), worker_at(3, 50), reduce_at(60), worker_at(63, 90, OTHER)) == {
        1: 0,
        3: 2,
    }


def test_a_range_may_begin_after_the_next_launch_of_another_kind():
    gather = ("c10d::_allgather_base_", TRAINER, 10, 12)
    gathered = ("gloo:all_gather", OTHER, 11, 90)
    assert matched(reduce_at(0), gather, gathered, worker_at(20, 50)) == {2: 1, 3: 0}


def test_a_reduce_scatter_is_a_range_of_all_reduce():
    launch = ("c10d::_reduce_scatter_base_", TRAINER, 0, 5)
    assert matched(launch, worker_at(3, 50)) == {1: 0}
    own = ("gloo:reduce_scatter", WORKER, 3, 50)
    assert matched(launch, own, reduce_at(4), worker_at(6, 9, OTHER)) == {1: 0, 3: 2}


def test_where_several_wait_nothing_tells_whose_a_range_is():
    waiting = (reduce_at(0), reduce_at(10), worker_at(15, 50), worker_at(16, 20, OTHER))
    assert matched(*waiting) == {}
    # What follows is certain again.
    assert matched(*waiting, reduce_at(60), worker_at(63, 70)) == {5: 4}


def test_launches_that_differ_in_nothing_may_be_any():
    waiting = (reduce_at(0), reduce_at(10), worker_at(15, 50), worker_at(16, 20, OTHER))
    assert matched(*waiting, stack=lambda _: "same") == {2: 0, 3: 1}


def test_a_range_that_was_launched_before_the_recording_has_no_launch():
    assert matched(worker_at(0, 50), reduce_at(60), worker_at(63, 70)) == {2: 1}


def test_a_launch_whose_range_is_not_recorded_waits_to_the_end():
    assert matched(reduce_at(0), worker_at(3, 5), reduce_at(10)) == {1: 0}


def test_a_send_begins_inside_its_operator():
    send = ("c10d::send", TRAINER, 0, 10), ("gloo:send", TRAINER, 5, 90)
    receive = ("c10d::recv_", TRAINER, 20, 30), ("gloo:recv", TRAINER, 25, 80)
    assert matched(*send, *receive) == {1: 0, 3: 2}


@pytest.mark.parametrize("kind", ["overlap", "no-overlap"])
def test_what_was_called_is_told_and_not_what_gloo_makes_of_it(kind):
    """Real profiles: gradients are reduced and scattered; loss and norm are all-reduced."""
    answer = trace_of(str(TRACES / f"megatron-{kind}.rank0.json.gz"))
    (rank,) = answer.document["ranks"]
    found = {(c["dimension"], c["operation"]) for c in rank["exposed_collectives"]}
    assert ("DP", "reduce_scatter") in found and ("DP", "all_gather") in found
    assert {c["name"] for c in rank["exposed_collectives"]} == {
        "gloo:all_reduce",
        "gloo:all_gather",
    }


def test_ranges_of_the_launch_say_the_dimension(tmp_path):
    """Two collectives of the same kind on worker threads, launched by code of two dimensions."""
    events = []
    for number in range(3):
        at = 1000.0 + 2000 * number
        step = host_range(f"ProfilerStep#{number}", at, 1990)
        events.append({**step, "pid": 9, "tid": 1})
        for offset, outer in (
            (100, "_ReduceFromModelParallelRegion"),
            (1000, "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad"),
        ):
            for name, more, length, thread in (
                (outer, 0, 300, 1),
                ("c10d::allreduce_", 10, 50, 1),
                ("gloo:all_reduce", 40, 400, 71),
                ("aten::mm", 500, 300, 1),
            ):
                event = host_range(name, at + offset + more, length, "cpu_op")
                events.append({**event, "pid": 9, "tid": thread})
    info = {"backend": "gloo", "rank": 0, "world_size": 4}
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"distributedInfo": info, "traceEvents": events}))
    (rank,) = trace_of(str(path)).document["ranks"]
    assert {(c["dimension"], c["count"]) for c in rank["exposed_collectives"]} == {
        ("TP", 3),
        ("DP", 3),
    }
