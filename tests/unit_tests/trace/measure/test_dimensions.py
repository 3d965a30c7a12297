"""Which dimension a communication is assigned to, and with what confidence."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.measure.dimensions import Known, dimension_of
from overlapkit.trace.measure.group_names import described
from overlapkit.trace.rank_report import Options
from overlapkit.trace.read.kernel_names import classify
from overlapkit.trace.read.recorded import Group
from support import tiny_trace as tiny

DEFAULT = {"pg_name": "0", "pg_desc": "default_pg", "pg_size": 8, "ranks": list(range(8))}
SECOND = {"pg_name": "1", "pg_desc": "undefined", "pg_size": 8, "ranks": list(range(8))}
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def host(name, ts, dur, tid=1, cat="cpu_op"):
    return {"ph": "X", "cat": cat, "name": name, "pid": 4, "tid": tid, "ts": ts, "dur": dur}


def launched(kernel, ranges, at=100, **args):
    """A kernel that was launched in ranges, the outermost first."""
    nested = [
        host(name, at + i, 40 - 2 * i, cat="python_function" if ".py(" in name else "cpu_op")
        for i, name in enumerate(ranges)
    ]
    launch = host("cudaLaunchKernel", at + 15, 2, cat="cuda_runtime")
    launch["args"] = {"correlation": at}
    return [*nested, launch, tiny.kernel(kernel, 1000 + at, 50, 20, correlation=at, **args)]


def traffic(tmp_path, events, groups=(DEFAULT,), **head):
    info = {"backend": "nccl", "rank": 0, "world_size": 8, "pg_config": list(groups)}
    path = tiny.write(tmp_path / "t.json", events, distributedInfo=info, **head)
    (report,) = analyse_file(path, Options())
    return {
        (c.traffic.operation, c.traffic.dimension, c.traffic.confidence) for c in report.collectives
    }


EXCHANGES = [
    (["c10d::alltoall_base_", "nccl:all_to_all"], ("all_to_all", "other", "unknown")),
    (["nccl:coalesced"], ("send_recv", "other", "unknown")),
    (["c10d::send", "nccl:send 0->1"], ("send", "other", "unknown")),
    ([], ("send_recv", "other", "unknown")),
    (
        ["megatron/core/pipeline_parallel/p2p_communication.py(9): _p2p_ops", "nccl:coalesced"],
        ("send_recv", "PP", "likely"),
    ),
    (["deepspeed/moe/sharded_moe.py(9): _AllToAll", "nccl:all_to_all"],
     ("all_to_all", "EP", "likely")),
]  # fmt: skip


@pytest.mark.parametrize(("ranges", "expected"), EXCHANGES)
def test_a_send_recv_kernel_is_what_was_called(tmp_path, ranges, expected):
    assert traffic(tmp_path, launched(tiny.SEND_RECV, ranges)) == {expected}


@pytest.mark.parametrize(
    ("group", "expected"),
    [("EXPERT_MODEL_PARALLEL_GROUP", "EP"), ("CONTEXT_PARALLEL_GROUP", "CP")],
)
def test_an_exchange_belongs_to_the_only_group_that_can_exchange(tmp_path, group, expected):
    listed = {"pg_name": "3", "pg_desc": group, "pg_size": 4}
    events = launched(tiny.SEND_RECV, ["nccl:all_to_all"])
    assert traffic(tmp_path, events, (DEFAULT, listed)) == {("all_to_all", expected, "likely")}


def test_without_evidence_nothing_is_called_a_pipeline(tmp_path):
    events = [e for at in range(100, 900, 100) for e in launched(tiny.SEND_RECV, [], at)]
    path = tiny.write(tmp_path / "t.json", events)
    (report,) = analyse_file(path, Options())
    assert [d.id for d in report.diagnoses if d.id == "pipeline-exposed"] == []


DDP = host("DistributedDataParallel.forward", 0, 20, cat="user_annotation")
ENGINE = host("vllm/v1/worker.py(1): execute_model", 0, 20, cat="python_function")
FSDP = host("FSDP::pre_forward", 0, 20, cat="user_annotation")


@pytest.mark.parametrize(
    ("marker", "kernel", "groups", "expected"),
    [
        (DDP, ALL_REDUCE, (DEFAULT,), ("all_reduce", "DP", "likely")),
        (FSDP, tiny.ALL_GATHER, (DEFAULT,), ("all_gather", "DP", "likely")),
        (ENGINE, ALL_REDUCE, (DEFAULT, SECOND), ("all_reduce", "TP", "likely")),
        (ENGINE, tiny.ALL_GATHER, (DEFAULT, SECOND), ("all_gather", "other", "unknown")),
        (None, ALL_REDUCE, (DEFAULT,), ("all_reduce", "DP", "guess")),
        # Another group of all ranks can be the one of tensor parallelism.
        (None, ALL_REDUCE, (DEFAULT, SECOND), ("all_reduce", "other", "unknown")),
        (DDP, ALL_REDUCE, (DEFAULT, {**SECOND, "pg_size": 2}), ("all_reduce", "other", "unknown")),
    ],
)
def test_a_group_of_all_ranks_is_told_by_the_framework(tmp_path, marker, kernel, groups, expected):
    called = "c10d::allreduce_" if kernel == ALL_REDUCE else "c10d::_allgather_base_"
    events = launched(kernel, [called])
    assert traffic(tmp_path, [*([marker] if marker else []), *events], groups) == {expected}


def test_functional_collectives_of_all_ranks_may_be_of_any_mesh(tmp_path):
    events = launched(ALL_REDUCE, ["_c10d_functional::all_reduce", "c10d::allreduce_"])
    assert traffic(tmp_path, events) == {("all_reduce", "other", "unknown")}


NAMES = {
    "DP": [
        "DATA_PARALLEL_GROUP", "DATA_PARALLEL_GROUP_WITH_CP_AG", "EXPERT_DATA_PARALLEL_GROUP",
        "INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP", "HYBRID_DP_CP_GROUP_4",
        "INTER_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP", "DATA_MODULO_EXPERT_PARALLEL_GROUP",
        "GTP_WEIGHT_REMAT_GROUP", "mesh_dp_shard", "mesh_dp_shard_cp", "mesh_dp_mod_ep",
        "mesh_dp_shard_mod_ep", "mesh_dp_replicate", "mesh_dp_cp", "dp_cp", "mesh_fsdp",
        "mesh_efsdp", "mesh_ep_shard", "mesh_loss", "dp:0", "fsdp_reduce_scatter",
    ],
    "TP": [
        "TENSOR_MODEL_PARALLEL_GROUP", "EXPERT_TENSOR_PARALLEL_GROUP", "mesh_tp", "mesh_etp",
        "tp:0", "attention_tp", "moe_tp", "attn_tp",
    ],
    "PP": ["PIPELINE_MODEL_PARALLEL_GROUP", "mesh_pp", "pp:0", "pp_p2p_round_0"],
    "CP": [
        "CONTEXT_PARALLEL_GROUP", "HIERARCHICAL_CONTEXT_PARALLEL_GROUP_L0", "mesh_cp", "mesh_sp",
        "ulysses", "dcp:0",
    ],
    "EP": [
        "EXPERT_MODEL_PARALLEL_GROUP", "EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP", "mesh_ep",
        "ep:0", "dp_shard_in_ep", "mesh_dp_shard_in_ep", "moe_ep", "mesh_ep_tp",
    ],
    "embedding": ["EMBEDDING_GROUP", "POSITION_EMBEDDING_GROUP"],
    "other": [
        "MODEL_PARALLEL_GROUP", "TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP",
        "TENSOR_AND_CONTEXT_PARALLEL_GROUP", "EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP",
        "mesh_cp_tp",
    ],
    None: ["default_pg", "undefined", "", "world:0", "mesh_default", "5", "group_7", None],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dimension"), [(name, d) for d, names in NAMES.items() for name in names]
)
def test_names_of_groups_tell_their_dimension(name, dimension):
    assert described(name) == dimension


def test_communication_before_the_first_step_is_no_part_of_the_steps(tmp_path):
    events = [
        tiny.kernel("ncclDevKernel_Broadcast_RING_LL()", 10, 500, 20),
        tiny.step(1, 1000, 500),
        tiny.kernel(tiny.GEMM, 1000, 300),
        tiny.kernel(tiny.ALL_GATHER, 1200, 300, 20, **{"Process Group Name": "tp:0"}),
    ]
    path = tiny.write(tmp_path / "t.json", events)
    (report,) = analyse_file(path, Options())
    assert report.confidence == {"TP": "certain"}
    assert list(report.steps[0].by_dimension) == ["TP"]
    assert list(report.whole.by_dimension) == ["TP", "other"]
    assert [w for w in report.warnings if "dimension" in w] == []


def old_traffic(tmp_path, events):
    """Of a trace without a list of groups, as before PyTorch 2.3."""
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    return {
        (c.traffic.operation, c.traffic.dimension, c.traffic.confidence) for c in report.collectives
    }


OLD_ALL_REDUCE = "ncclAllReduceRingLLKernel_sum_f32(ncclColl)"
OLD_BROADCAST = "ncclKernel_Broadcast_RING_LL_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)"
HOOK = "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad"


@pytest.mark.parametrize(
    ("kernel", "ranges", "expected"),
    [
        (OLD_ALL_REDUCE, [HOOK], ("all_reduce", "DP", "likely")),
        (OLD_ALL_REDUCE, [HOOK, "c10d::allreduce_"], ("all_reduce", "DP", "likely")),
        (OLD_ALL_REDUCE, ["c10d::allreduce_"], ("all_reduce", "other", "unknown")),
        (OLD_ALL_REDUCE, [], ("all_reduce", "other", "unknown")),
        (
            OLD_BROADCAST,
            ["DistributedDataParallel.forward", "c10d::broadcast_"],
            ("broadcast", "DP", "likely"),
        ),
        (
            tiny.ALL_GATHER,
            ["DistributedDataParallel.forward", "c10d::_allgather_base_"],
            ("all_gather", "other", "unknown"),
        ),
    ],
)
def test_gradient_hooks_and_buffers_are_data_parallel(tmp_path, kernel, ranges, expected):
    assert old_traffic(tmp_path, launched(kernel, ranges)) == {expected}


def test_without_launches_an_all_reduce_beside_ddp_is_a_guess(tmp_path):
    events = [host("DistributedDataParallel.forward", 0, 90), tiny.kernel(OLD_ALL_REDUCE, 100, 50)]
    assert old_traffic(tmp_path, events) == {("all_reduce", "DP", "guess")}
    split = host("FSDP::all_gather", 0, 90)
    assert old_traffic(tmp_path, [*events, split]) == {("all_reduce", "other", "unknown")}


def test_nothing_is_guessed_of_a_communication_whose_launch_is_unknown(tmp_path):
    group = {"Process Group Description": "default_pg", "Group size": 8}
    alone = [tiny.kernel(tiny.ALL_GATHER, 100, 50, 20, **group)]
    assert traffic(tmp_path, alone) == {("all_gather", "other", "unknown")}
    called = launched(tiny.ALL_GATHER, ["c10d::_allgather_base_"], **group)
    assert traffic(tmp_path, called) == {("all_gather", "DP", "guess")}


def test_a_send_of_gloo_is_no_exchange_of_experts():
    groups = (
        Group("4", "PIPELINE_MODEL_PARALLEL_GROUP", 2),
        Group("5", "EXPERT_MODEL_PARALLEL_GROUP", 2),
    )
    send, nccl = classify("gloo:send"), classify("ncclDevKernel_SendRecv()")
    assert dimension_of(send, None, Known(groups)) == ("PP", "likely")
    # The kernel of NCCL may be a part of an all-to-all.
    assert dimension_of(nccl, None, Known(groups)) == ("other", "unknown")
    # So may a ring of context parallelism send.
    ring = (*groups, Group("6", "CONTEXT_PARALLEL_GROUP", 2))
    assert dimension_of(send, None, Known(ring)) == ("other", "unknown")
