"""A recording that ends inside a step."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from support import tiny_trace as tiny

FORWARD = [f"f{n % 7}" for n in range(40)]
BACKWARD = [f"b{n % 9}" for n in range(60)]
OPTIMIZER = [f"adam{n}" for n in range(10)]
WHOLE = [*FORWARD, *BACKWARD, *OPTIMIZER]


def report(tmp_path, kernels, **options):
    """Steps of these kernels, 10 microseconds each, as the profiler marks them on the host."""
    events, ts = [], 1000
    for number, names in enumerate(kernels, start=4):
        length = 12 * max(1, len(names))
        events.append(tiny.step(number, ts, length, cat="user_annotation"))
        for place, name in enumerate(names):
            at, launch = ts + 12 * place, len(events)
            call = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 4000}
            call |= {"tid": 7, "ts": at, "dur": 1, "args": {"correlation": launch}}
            events += [call, tiny.kernel(name, at + 1, 10, correlation=launch)]
        ts += length
    (one,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options(**options))
    return one


@pytest.mark.parametrize("whole", [1, 2, 5])
@pytest.mark.parametrize(
    "rest",
    [WHOLE[:30], WHOLE[:75], WHOLE[:100], WHOLE[:1], ["mean", "item"]],
    ids=["forward", "backward", "no optimizer", "one kernel", "after the loop"],
)
def test_a_step_in_which_the_recording_ends_is_no_step(whole, rest, tmp_path):
    found = report(tmp_path, [*[WHOLE] * whole, rest])
    assert [t.window.number for t in found.steps] == list(range(4, 4 + whole))
    assert len({t.step for t in found.steps}) == 1
    assert any(f"the recording ends in ProfilerStep#{4 + whole}" in w for w in found.warnings)
    assert found.check.steps_stand_for_trace


def test_it_is_reported_where_it_is_asked_for(tmp_path):
    found = report(tmp_path, [WHOLE, WHOLE, WHOLE[:30]], steps="6")
    assert [t.window.number for t in found.steps] == [6]


@pytest.mark.parametrize(
    "steps",
    [
        [WHOLE, WHOLE],
        [WHOLE],
        [WHOLE, WHOLE, WHOLE[:-2]],
        [WHOLE[:100], WHOLE, WHOLE[:100]],
        [WHOLE, WHOLE, ["eval"] * 60],
        [["a", "b"], ["a"]],
    ],
    ids=["whole", "one", "two kernels less", "accumulation", "other work", "tiny"],
)
def test_other_steps_stay(steps, tmp_path):
    found = report(tmp_path, steps)
    assert len(found.steps) == len(steps)
    assert not any("recording ends" in w for w in found.warnings)


def test_in_a_file_that_ends_in_the_middle_a_short_step_is_compared_too(tmp_path):
    events = []
    for number in range(3):
        ts = 1000 + 100 * number
        events.append(tiny.step(number, ts, 100))
        events += [tiny.kernel(name, ts + 10 * n, 9) for n, name in enumerate(("a", "b", "c"))]
    path = tmp_path / "t.json"
    tiny.write(path, events)
    text = path.read_text()
    path.write_text(text[: text.rindex('"b"')])
    (one,) = analyse_file(str(path), Options())
    assert [t.window.number for t in one.steps] == [0, 1]
    assert any("ends in ProfilerStep#2" in w for w in one.warnings)
    path.write_text(text)
    (one,) = analyse_file(str(path), Options())
    assert [t.window.number for t in one.steps] == [0, 1, 2]
