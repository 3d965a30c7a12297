"""When gradients are reduced, and what waits for it."""

from __future__ import annotations

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from support import tiny_trace as tiny

DATA_PARALLEL = {"Process Group Description": "mesh_dp"}


def diagnoses(tmp_path, events, steps, length):
    marked = [tiny.step(n, length * n, length) for n in range(steps)]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", [*events, *marked]), Options())
    return {d.id for d in report.diagnoses}


def accumulated(at, first_reduction, microbatches=8, layers=4):
    """Microbatches of 300 us a layer; the last one is followed or accompanied by reductions."""
    length = 300 * layers
    events = [
        tiny.kernel(tiny.GEMM, at + length * m + 300 * n, 300)
        for m in range(microbatches)
        for n in range(layers)
    ]
    begin = at + length * (microbatches - 1) + first_reduction
    reductions = [
        tiny.kernel(tiny.REDUCE_SCATTER, begin + 1000 * n, 1000, 20, **DATA_PARALLEL)
        for n in range(layers)
    ]
    adam = tiny.kernel("multi_tensor_apply", begin + 1000 * layers, 100)
    return [*events, *reductions, adam]


def test_reductions_beside_the_last_of_many_backward_passes_are_not_after_it(tmp_path):
    events = [e for n in range(3) for e in accumulated(20_000 * n, first_reduction=300)]
    found = diagnoses(tmp_path, events, 3, 20_000)
    assert not found & {"grad-reduce-after-backward", "single-bucket"}
    assert "exposed-communication" in found


def test_reductions_after_the_last_of_many_backward_passes_are_after_it(tmp_path):
    events = [e for n in range(3) for e in accumulated(20_000 * n, first_reduction=1200)]
    assert "grad-reduce-after-backward" in diagnoses(tmp_path, events, 3, 20_000)


def on_one_stream(at, held):
    """Compute that starts when `held` ends, on whose stream the next reduction waited."""
    launch = 100 * at
    events = []
    for n in range(6):
        begin, first = at + 800 * n, launch + 10 * n
        events += [
            tiny.kernel(held, begin, 300, 20, correlation=first, **DATA_PARALLEL),
            tiny.kernel(
                tiny.REDUCE_SCATTER, begin + 301, 200, 20, correlation=first + 1, **DATA_PARALLEL
            ),
            tiny.kernel(tiny.GEMM, begin + 301, 490, 7, correlation=first + 2),
        ]
    return events


def test_compute_that_waits_for_its_parameters_does_not_wait_in_a_queue(tmp_path):
    events = [e for n in range(3) for e in on_one_stream(5000 * n + 1, tiny.ALL_GATHER)]
    assert "one-queue" not in diagnoses(tmp_path, events, 3, 5000)


def test_compute_that_waits_for_a_reduction_waits_in_a_queue(tmp_path):
    events = [e for n in range(3) for e in on_one_stream(5000 * n + 1, tiny.REDUCE_SCATTER)]
    assert "one-queue" in diagnoses(tmp_path, events, 3, 5000)


def test_nothing_is_said_of_reductions_of_an_unknown_dimension(tmp_path):
    events = [e for n in range(3) for e in accumulated(20_000 * n, first_reduction=1200)]
    for event in events:
        event["args"].pop("Process Group Description", None)
    found = diagnoses(tmp_path, events, 3, 20_000)
    assert not found & {"grad-reduce-after-backward", "single-bucket", "one-queue"}


def test_no_diagnosis_rests_on_a_guess(tmp_path):
    # All ranks are one group, which may gather parameters or anything else.
    group = {"Process Group Description": "default_pg", "Group size": 8}
    events = []
    for n in range(3):
        events += [
            tiny.kernel(tiny.GEMM, 5000 * n, 2000),
            tiny.kernel(tiny.ALL_GATHER, 5000 * n + 2000, 2000, 20, **group),
        ]
    found = diagnoses(tmp_path, events, 3, 5000)
    assert "param-gather-exposed" not in found and "exposed-communication" in found
    for event in events:
        event["args"].pop("Group size", None)
        if "Process Group Description" in event["args"]:
            event["args"]["Process Group Description"] = "mesh_dp_shard"
    assert "param-gather-exposed" in diagnoses(tmp_path, events, 3, 5000)
