"""Which data-parallel reductions are of gradients: losses, norms and counters are not."""

from __future__ import annotations

import pytest

from support.field.machine import TORCH_2_6, Machine
from support.field.training import ALL_REDUCE, GEMM, REDUCE_SCATTER, step
from support.trace_answers import trace_of

DATA = ("5", "DATA_PARALLEL_GROUP_WITH_CP", [0, 1, 2, 3])
REPLICAS = ("6", "INTER_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP", [0, 4])


def _run(buckets: int, *others: tuple[str, tuple[str, str, list[int]], int]) -> Machine:
    """Late reductions, then others: kernel, group and bytes of each."""
    m = Machine(TORCH_2_6, world=8)
    for number in range(4):
        with step(m, number):
            done = m.kernel(GEMM, 3000)
            for _ in range(buckets):
                done = m.collective(
                    REDUCE_SCATTER, 200, 20, "_reduce_scatter_base", group=DATA, after=[done]
                )
            for kernel, group, nbytes in others:
                done = m.collective(
                    kernel, 200, 20, "allreduce", group=group, nbytes=nbytes, after=[done]
                )
            m.kernel(GEMM, 50, after=[done])
            m.wait(m.free())
    return m


@pytest.mark.parametrize(
    ("others", "id"),
    [
        ((), "single-bucket"),
        # The same group: a loss, or a norm. Its size need not be known.
        (((ALL_REDUCE, DATA, 1 << 22),), "single-bucket"),
        # A counter that is reduced over replicas.
        (((ALL_REDUCE, REPLICAS, 8),), "single-bucket"),
        # Replicas of sharded gradients.
        (((ALL_REDUCE, REPLICAS, 1 << 22),), "grad-reduce-after-backward"),
    ],
)
def test_what_counts_as_a_reduction_of_gradients(others, id, tmp_path):
    document = trace_of(_run(1, *others).write(tmp_path / "t.json")).document
    found = {d["id"]: d for d in document["diagnoses"]}
    assert found.keys() & {"single-bucket", "grad-reduce-after-backward"} == {id}
    reductions = 2.0 if id == "grad-reduce-after-backward" else 1.0
    assert found[id]["evidence"]["reductions_per_step"] == reductions


def test_buckets_are_counted_without_the_loss(tmp_path):
    document = trace_of(_run(3, (ALL_REDUCE, DATA, 4)).write(tmp_path / "t.json")).document
    (found,) = [d for d in document["diagnoses"] if d["id"] == "grad-reduce-after-backward"]
    assert found["evidence"]["reductions_per_step"] == 3.0
    assert "All 3 gradient reductions" in found["message"]
