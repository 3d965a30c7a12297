"""Time that two diagnoses count is said, so that costs are never more than there is."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import pytest

from support.field.machine import TORCH_2_6, Machine
from support.field.megatron import Megatron
from support.field.situations import SITUATIONS
from support.field.training import ALL_GATHER, GEMM, REDUCE_SCATTER, step
from support.trace_answers import trace_of

EXPOSED = {
    "single-bucket",
    "grad-reduce-after-backward",
    "param-gather-exposed",
    "one-queue",
    "tp-overlap-off",
    "pipeline-bubble",
    "pipeline-exposed",
    "expert-exchange-exposed",
    "bandwidth-bound",
    "exposed-communication",
}
OF_ONE_RANK = [name for name in SITUATIONS if not name.startswith("compare")]


@pytest.mark.parametrize("name", OF_ONE_RANK)
def test_costs_less_what_they_share_are_no_more_than_what_is_exposed(name, tmp_path):
    document = SITUATIONS[name](tmp_path).document
    found = [d for d in document["diagnoses"] if d["id"] in EXPOSED]
    costs = sum(d["cost_us"] for d in found)
    shared = sum(one["shared_us"].get(other["id"], 0.0) for one, other in combinations(found, 2))
    exposed = max(
        fmean(w["exposed_comm_us"] for w in rank["steps"] or [rank["whole"]])
        for rank in document["ranks"]
    )
    if len(document["ranks"]) > 1:
        # Each diagnosis is of the rank that it costs most.
        assert max((d["cost_us"] for d in found), default=0.0) <= exposed + 0.01
        return
    # What two share is not said where it is less than 1 % of the cheaper.
    assert costs - shared <= exposed + 0.01 * costs + 0.01


@pytest.mark.parametrize("name", OF_ONE_RANK)
def test_what_one_shares_with_another_that_shares_with_it(name, tmp_path):
    found = {d["id"]: d for d in SITUATIONS[name](tmp_path).document["diagnoses"]}
    for id, diagnosis in found.items():
        for other, us in diagnosis["shared_us"].items():
            assert 0 < us <= min(diagnosis["cost_us"], found[other]["cost_us"])
            assert id in found[other]["shared_us"]


def _at_once(overlap_us: float) -> Machine:
    """Two dimensions that are exposed, in part at the same time."""
    m = Machine(TORCH_2_6, world=16)
    for number in range(4):
        with step(m, number):
            done = m.kernel(GEMM, 1000)
            tensor = ("30", "TENSOR_MODEL_PARALLEL_GROUP", [0, 1, 2, 3])
            data = ("31", "DATA_PARALLEL_GROUP_WITH_CP", [0, 4, 8, 12])
            done = m.collective(
                REDUCE_SCATTER, 400, 30, "_reduce_scatter_base", group=tensor, after=[done]
            )
            done = m.collective(
                ALL_GATHER, 300, 31, "_allgather_base", group=data, after=[done - overlap_us]
            )
            m.kernel(GEMM, 1000, after=[done])
            m.wait(m.free())
    return m


@pytest.mark.parametrize("overlap_us", [0, 60, 200])
def test_dimensions_exposed_at_the_same_time_share_it(overlap_us, tmp_path):
    path = _at_once(overlap_us).write(tmp_path / "t.json")
    found = {d["id"]: d for d in trace_of(path).document["diagnoses"]}
    shares = found["tp-overlap-off"]["shared_us"]
    assert shares.get("param-gather-exposed", 0.0) == pytest.approx(overlap_us, abs=1)
    assert found["tp-overlap-off"]["cost_us"] == pytest.approx(400, abs=1)


def test_waiting_for_a_late_rank_is_exposed_communication_too(tmp_path):
    document = SITUATIONS["generated: late rank"](tmp_path).document
    found = {d["id"]: d for d in document["diagnoses"]}
    late = found.pop("late-rank")
    for id, diagnosis in found.items():
        shares = id in EXPOSED and set(diagnosis["ranks"]) & set(late["ranks"])
        assert (id in late["shared_us"]) == bool(shares)


def test_nothing_is_said_where_each_counts_its_own(tmp_path):
    path = Megatron(pipeline=True).run(microbatches=8).write(tmp_path / "t.json")
    answer = trace_of(path)
    assert len(answer.document["diagnoses"]) == 2
    assert all(not d["shared_us"] for d in answer.document["diagnoses"])
    assert "other diagnoses count" not in answer.text
