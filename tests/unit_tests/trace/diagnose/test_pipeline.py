"""The bubble of a pipeline is told from transfers that its steady state exposes."""

from __future__ import annotations

import pytest

from support import tiny_trace as tiny

GROUP = {
    "Process Group Description": "PIPELINE_MODEL_PARALLEL_GROUP",
    "Group size": 2,
    "Collective name": "recv",
}


def traced(overlapkit, tmp_path, *, ends: float, between: float) -> dict[str, dict]:
    """Steps of eight microbatches, with receives of these lengths (us) at either end and between
    them; returns the diagnoses by id."""
    events, at = [], 1000.0
    for number in range(3):
        start = at
        for microbatch in range(8):
            length = ends if microbatch == 0 else between
            events.append(tiny.kernel(tiny.SEND_RECV, at, length, stream=9, **GROUP))
            at += length
            events.append(tiny.kernel(tiny.GEMM, at, 1000))
            at += 1000
        events.append(tiny.kernel(tiny.SEND_RECV, at, ends, stream=9, **GROUP))
        at += ends
        events.append(tiny.step(number, start, at - start))
    head = {"distributedInfo": {"rank": 0, "world_size": 2}}
    trace = tiny.write(tmp_path / "trace.json", events, **head)
    found = overlapkit("trace", trace, "--json").document["diagnoses"]
    return {d["id"]: d for d in found}


def test_waiting_at_the_ends_of_a_step_is_a_bubble(overlapkit, tmp_path):
    found = traced(overlapkit, tmp_path, ends=1500, between=1)
    assert "pipeline-exposed" not in found
    bubble = found["pipeline-bubble"]
    assert bubble["cost_us"] == pytest.approx(3000, rel=0.1)
    assert "microbatches" in bubble["remedy"]


def test_waiting_between_microbatches_is_no_bubble(overlapkit, tmp_path):
    found = traced(overlapkit, tmp_path, ends=1, between=300)
    assert "pipeline-bubble" not in found
    assert found["pipeline-exposed"]["cost_us"] > 0


def test_each_has_its_own_cost(overlapkit, tmp_path):
    found = traced(overlapkit, tmp_path, ends=1500, between=300)
    both = found["pipeline-bubble"]["cost_us"] + found["pipeline-exposed"]["cost_us"]
    assert both == pytest.approx(2 * 1500 + 7 * 300, rel=0.01)
