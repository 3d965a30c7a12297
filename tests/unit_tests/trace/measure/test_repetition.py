"""Iterations of a profile without marked steps."""

from __future__ import annotations

import random

import pytest

from overlapkit.trace.analyse import analyse_file, read
from overlapkit.trace.measure.repetition import repetition
from overlapkit.trace.rank_report import Options
from support import tiny_trace as tiny

LAYERS = 4
DECODER = ["gemm", "norm", "attention", "gemm", "all", "gemm", "act", "gemm", "all"]


def iteration(layers=LAYERS):
    """Kernel names of a forward, a backward and an optimizer."""
    forward = [f"f{n}" for n in range(6)] * layers
    backward = [f"b{n}" for n in range(9)] * layers
    return ["embedding", "rope", *forward, "loss", *backward, *[f"adam{n}" for n in range(10)]]


def accumulated(microbatches, steps):
    """Kernel names of steps with many microbatches and an optimizer of a few kernels."""
    forward = [f"f{n}" for n in range(6)] * 40
    backward = [f"b{n}" for n in range(9)] * 40
    microbatch = ["embedding", "rope", *forward, "loss", *backward]
    return [*microbatch * microbatches, *[f"adam{n}" for n in range(5)]] * steps


def trace(tmp_path, names, length=10):
    events = [tiny.kernel(name, 1000 + 12 * n, length) for n, name in enumerate(names)]
    return tiny.write(tmp_path / "t.json", events)


@pytest.mark.parametrize("cut", [0, 1, 17, 60])
def test_iterations_are_found_wherever_the_capture_begins(tmp_path, cut):
    names = iteration() * 5
    (work,) = read(trace(tmp_path, names[cut:]))
    found = repetition(work)
    assert found is not None
    assert found.kernels == len(iteration())
    whole = 12_000 * len(iteration())
    assert {w.end - w.start for w in found.windows[:-1]} == {whole}
    assert found.windows[0].start == work.whole.start
    # One kernel that lacks is within the difference between iterations.
    assert len(found.windows) == (len(names[cut:]) + 1) // len(iteration())


@pytest.mark.parametrize("cut", [0, 30, len(iteration()) - 1])
def test_iterations_begin_after_the_pause_that_separates_them(tmp_path, cut):
    names, events, ts = (iteration() * 5)[cut:], [], 1000
    for number, name in enumerate(names):
        begins = (number + cut) % len(iteration()) == 0
        ts += 100 if begins and number else 0
        events.append(tiny.kernel(name, ts, 10))
        ts += 12
    (work,) = read(tiny.write(tmp_path / "t.json", events))
    found = repetition(work)
    assert found is not None
    first = events[-cut % len(iteration())]["ts"]
    assert found.windows[0].start == 1000 * first
    assert len(found.windows) == (5 if cut == 0 else 4)
    assert {w.end - w.start for w in found.windows[:-1]} == {1000 * (12 * len(iteration()) + 100)}
    assert found.windows[-1].end == work.whole.end


@pytest.mark.parametrize(("microbatches", "steps"), [(4, 3), (16, 5), (1, 4)])
def test_a_microbatch_is_no_iteration(microbatches, steps, tmp_path):
    names = accumulated(microbatches, steps)
    (work,) = read(trace(tmp_path, names))
    found = repetition(work)
    assert found is not None
    assert (found.kernels, len(found.windows)) == (len(names) // steps, steps)
    # The capture begins and ends inside the optimizer's step.
    (work,) = read(trace(tmp_path, [*names[-2:], *names, *names[:3]]))
    found = repetition(work)
    assert found is not None
    assert {w.end - w.start for w in found.windows} == {12_000 * len(names) // steps}


def test_an_iteration_of_a_few_distinct_kernels_is_whole(tmp_path):
    # A decoder: equal layers, and one kernel at the end that nothing else launches.
    (work,) = read(trace(tmp_path, [*DECODER * 10, "argmax"] * 8))
    found = repetition(work)
    assert found is not None and len(found.windows) == 8
    assert (found.windows[0].start, found.windows[-1].end) == (work.whole.start, work.whole.end)


def test_iterations_of_slightly_different_length_are_the_same_work(tmp_path):
    names = []
    for number in range(6):
        names += [*iteration(10), *["extra"] * (number % 2)]
    (work,) = read(trace(tmp_path, names))
    found = repetition(work)
    assert found is not None and len(found.windows) == 6


@pytest.mark.parametrize(
    "names",
    [
        iteration(),
        iteration() * 2,
        random.Random(7).choices([f"k{n}" for n in range(40)], k=2000),
        ["same"] * 500,
        [*iteration(), *random.Random(7).choices(["a", "b", "c"], k=3000), *iteration() * 3],
        [*DECODER * 32, "argmax"] * 8,
        accumulated(microbatches=6, steps=2),
    ],
    ids=[
        "one iteration",
        "two",
        "no order",
        "one kernel",
        "only a part repeats",
        "layers",
        "microbatches",
    ],
)
def test_no_iterations_without_a_clear_repetition(tmp_path, names):
    (work,) = read(trace(tmp_path, names))
    assert repetition(work) is None


def test_iterations_take_the_place_of_steps(tmp_path):
    path = trace(tmp_path, iteration() * 5)
    (report,) = analyse_file(path, Options())
    assert report.steps_from == "repetition"
    assert [t.window.name for t in report.steps][:2] == ["iteration 0", "iteration 1"]
    assert any("the same sequence of" in w for w in report.warnings)


def test_marked_steps_come_first(tmp_path):
    events = [tiny.kernel(name, 1000 + 12 * n, 10) for n, name in enumerate(iteration() * 5)]
    marked = tiny.step(1, 1000, 12 * len(events))
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", [*events, marked]), Options())
    assert report.steps_from == "ranges" and len(report.steps) == 1
