"""Communication that no overlap can hide is named, and so is any that is much of a step."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from support import tiny_trace as tiny

ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
H100 = {"deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3"}]}


def described(**more):
    return {
        "Process Group Description": "mesh_dp",
        "Collective name": "allreduce",
        "In msg nelems": 12_000_000,
        "Out msg nelems": 12_000_000,
        "dtype": "BFloat16",
        "Group size": 8,
        **more,
    }


def steps(compute, beside, alone):
    """Three steps: communication beside compute, then alone, in microseconds."""
    events, length = [], max(compute, beside) + alone
    for n in range(3):
        at = n * length
        events += [tiny.kernel(tiny.GEMM, at, compute), tiny.step(n, at, length)]
        for begin, took in ((at, beside), (at + max(compute, beside), alone)):
            if took:
                events.append(tiny.kernel(ALL_REDUCE, begin, took, 20, **described()))
    return events


def diagnoses(tmp_path, events, world_size=8):
    info = {"rank": 0, "world_size": world_size}
    path = tiny.write(tmp_path / "t.json", events, distributedInfo=info, **H100)
    (report,) = analyse_file(path, Options())
    return {d.id: d for d in report.diagnoses}


def test_collectives_longer_than_all_compute_are_bandwidth_bound(tmp_path):
    found = diagnoses(tmp_path, steps(6500, 3500, 20_200))["bandwidth-bound"]
    assert found.evidence["comm_us"] == 23_700
    assert found.evidence["compute_us"] == 6500
    assert found.evidence["overlap_saves_at_most_us"] == 3000
    # nccl-tests: 2 (n - 1) / n bytes on the bus for each byte, over both kernels of a step.
    reached = 2 * 24e6 * 2 * 7 / 8 / 23_700e-6 / 1e9
    assert found.evidence["bus_gb_per_s"] == round(reached, 1)
    assert "NVLink of this GPU has 450 GB/s" in found.message
    assert found.cost_us == 17_200


def test_the_link_is_not_named_where_the_group_can_span_nodes(tmp_path):
    found = diagnoses(tmp_path, steps(6500, 3500, 20_200), world_size=64)["bandwidth-bound"]
    assert "GB/s" in found.message and "NVLink" not in found.message


@pytest.mark.parametrize(("compute", "beside", "alone"), [(6500, 6500, 0), (6500, 3000, 3000)])
def test_communication_that_compute_could_hide_is_not_bandwidth_bound(
    compute, beside, alone, tmp_path
):
    assert "bandwidth-bound" not in diagnoses(tmp_path, steps(compute, beside, alone))


def test_a_step_with_much_exposed_communication_is_never_fine(tmp_path):
    # A reduction at the step's begin: no diagnosis knows it.
    events = []
    for n in range(3):
        at = n * 1000
        events += [
            tiny.kernel(ALL_REDUCE, at, 150, 20, **described()),
            tiny.kernel(tiny.GEMM, at + 150, 850),
            tiny.step(n, at, 1000),
        ]
    found = diagnoses(tmp_path, events)["exposed-communication"]
    assert found.message == "15 % of the step is exposed communication: DP all_reduce 0.150 ms."


def test_little_exposed_communication_has_no_diagnosis(tmp_path):
    assert diagnoses(tmp_path, steps(1000, 500, 8)) == {}


def test_kernels_of_one_operation_are_listed_once(tmp_path):
    # Two algorithms of one operation run at the same time.
    tree = "ncclDevKernel_AllReduce_Sum_bf16_TREE_LL(ncclDevKernelArgsStorage<4096ul>)"
    events = steps(6500, 3500, 1500)
    for n in range(3):
        at = n * 8000 + 6500
        events.append(tiny.kernel(tree, at, 1500, 21, **described()))
    found = diagnoses(tmp_path, events)["exposed-communication"]
    assert "exposed communication: DP all_reduce 1.500 ms." in found.message
