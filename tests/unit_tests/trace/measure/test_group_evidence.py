"""What ranges around launches say of communicators, in exports of Nsight Systems."""

from __future__ import annotations

import sqlite3

import pytest

from overlapkit.trace.measure.evidence import Evidence, evidence
from overlapkit.trace.measure.group_evidence import Launched, groups_of
from overlapkit.trace.read.recorded import Call
from support.field import nsight, nsight_programs
from support.field.machine import TORCH_2_6, Machine
from support.field.training import ALL_GATHER, ALL_REDUCE, GEMM
from support.trace_answers import trace_of

TE = "transformer_engine."
GATHER, SCATTER, REDUCE = "ncclAllGather", "ncclReduceScatter", "ncclAllReduce"


@pytest.mark.parametrize(
    ("ranges", "dimension"),
    [
        # Transformer Engine's ranges.
        ((f"{TE}_Linear.forward.proj.row_parallel_comm", SCATTER), "TP"),
        ((f"{TE}_LayerNormLinear.backward.qkv.column_parallel_comm_dgrad", SCATTER), "TP"),
        ((f"{TE}_Linear.forward.input_cast_comm", GATHER), "TP"),
        ((f"{TE}_Linear.backward.grad_output_preprocess", GATHER), "TP"),
        ((f"{TE}AttnFuncWithCPAndKVP2P.forward", "ncclSend"), "CP"),
        ((f"{TE}AttnFuncWithCPAndKVAllGather.backward", GATHER), "CP"),
        # Reduces the scales of FP8 over other ranks too.
        ((f"{TE}_Linear.backward.reduce_and_update_fp8_tensors", REDUCE), None),
        ((f"{TE}_Linear.forward.fsdp_gather", GATHER), None),
        # PyTorch's operators.
        (("_LayerNormLinear", GATHER), "TP"),
        (("_LinearBackward", SCATTER), "TP"),
        (("_LinearBackward", REDUCE), None),
        (("_GroupedLinear", GATHER), None),
        (("LinearWithGradAccumulationAndAsyncCommunicationBackward", SCATTER), "TP"),
        (("_ReduceFromModelParallelRegion", REDUCE), "TP"),
        (("_GatherFromSequenceParallelRegion", GATHER), None),
        (("autograd::engine::evaluate_function: _LinearBackward", GATHER), None),
        (
            ("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", SCATTER),
            "DP",
        ),
        # Megatron-Core's ranges: hooks gather parameters there.
        (("megatron.core.transformer.mlp.forward.linear_fc2", SCATTER), "TP"),
        (("megatron.core.transformer.attention.forward.linear_proj", REDUCE), "TP"),
        (("megatron.core.transformer.mlp.forward.linear_fc1", GATHER), None),
        (("megatron.core.transformer.transformer_layer.forward.mlp", SCATTER), None),
    ],
)
def test_what_ranges_of_layers_serve(ranges, dimension):
    assert evidence(ranges).dimension == dimension


def test_a_group_has_the_dimension_that_all_its_launches_say():
    tensor, data, both, experts = (Call(group=name) for name in "1234")
    launched = [
        (tensor, Evidence(dimension="TP")),
        (tensor, Evidence()),
        (data, Evidence(dimension="DP")),
        (both, Evidence(dimension="DP")),
        (both, Evidence(dimension="EP")),
        (experts, Evidence(mixed=True)),
        (experts, Evidence(dimension="TP", general=True)),
        (Call(), Evidence(dimension="PP")),
        (None, Evidence(dimension="PP")),
    ]
    told = groups_of(Launched(0, call, launch) for call, launch in launched)
    assert told.dimension == {"1": "TP", "2": "DP"} and told.mixed == {"4"}


def _program(*ranges: str) -> Machine:
    """One communicator, used once in each range and once outside."""
    m = Machine(TORCH_2_6)
    for _ in range(3):
        for name in ranges:
            with m.range(name):
                nsight_programs.nccl(m, ALL_GATHER, 100, 30, GATHER, nsight_programs.TP, m.free())
            m.kernel(GEMM, 500)
        nsight_programs.nccl(m, ALL_REDUCE, 100, 30, REDUCE, nsight_programs.TP, m.free())
        m.kernel(GEMM, 500)
    return m


def _dimensions(m: Machine, folder, **stated) -> dict[str, str]:
    path = nsight.write(m, folder / "t.sqlite", [nsight_programs.TP])
    (rank,) = trace_of(path, **stated).document["ranks"]
    return {c["operation"]: c["dimension"] for c in rank["exposed_collectives"]}


def test_what_a_communicator_does_elsewhere_is_of_its_dimension(tmp_path):
    m = _program(f"{TE}_LayerNormLinear.forward.gemm_input_cast_comm")
    assert _dimensions(m, tmp_path) == {"all_gather": "TP", "all_reduce": "TP"}


def test_a_communicator_of_which_launches_say_different_things_stays_open(tmp_path):
    m = _program(
        f"{TE}_LayerNormLinear.forward.gemm_input_cast_comm",
        "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad",
    )
    assert _dimensions(m, tmp_path)["all_reduce"] == "other"


def test_operators_of_emit_nvtx_are_known_by_their_names(tmp_path):
    m = _program("_LayerNormLinear, seq = 12, op_id = 340, sizes = [[4, 2], []]")
    assert _dimensions(m, tmp_path) == {"all_gather": "TP", "all_reduce": "TP"}


@pytest.mark.parametrize("name", ["a10000000000", "0xA10000000000", "communicator a10000000000"])
def test_a_communicator_is_named_by_its_id(name, tmp_path):
    found = _dimensions(_program("forward"), tmp_path, group=[f"{name}=CP"])
    assert set(found.values()) == {"CP"}


def test_another_id_matches_nothing(tmp_path):
    path = nsight.write(_program("forward"), tmp_path / "t.sqlite", [nsight_programs.TP])
    answer = trace_of(path, group=["b1=CP"])
    assert "--group b1=CP: no process group has this name or size" in answer.text


MAPPING = "megatron/core/tensor_parallel/mappings.py(150): _gather_along_first_dim"
DISPATCHER = "megatron/core/transformer/moe/token_dispatcher.py(270): token_dispatch"


def test_functions_for_any_group_say_nothing_where_experts_gather_in_it(tmp_path):
    """Megatron-Core's allgather dispatcher; the backward pass has no frame of it."""
    m = Machine(TORCH_2_6)
    for _ in range(3):
        for frames in ((DISPATCHER, MAPPING), (MAPPING,)):
            with m.frames(*frames):
                nsight_programs.nccl(m, ALL_GATHER, 100, 30, GATHER, nsight_programs.TP, m.free())
            m.kernel(GEMM, 500)
    path = nsight.write(m, tmp_path / "t.sqlite", [nsight_programs.TP], python=True)
    (rank,) = trace_of(path).document["ranks"]
    assert {c["dimension"] for c in rank["exposed_collectives"]} == {"other"}


def test_a_communicator_is_of_the_same_dimension_in_all_processes(tmp_path):
    """Only one process records ranges, as with Megatron's --profile-ranks."""
    path = nsight.write(
        _program(f"{TE}_LayerNormLinear.forward.gemm_input_cast_comm"),
        tmp_path / "t.sqlite",
        [nsight_programs.TP],
    )
    _add_process(path)
    ranks = trace_of(path).document["ranks"]
    assert len(ranks) == 2
    for rank in ranks:
        assert {c["dimension"] for c in rank["exposed_collectives"]} == {"TP"}


def _add_process(path: str) -> None:
    """Another process on another device that did the same, without ranges of its own."""
    with sqlite3.connect(path) as db:
        for table, process in (
            ("CUPTI_ACTIVITY_KIND_KERNEL", "globalPid"),
            ("CUPTI_ACTIVITY_KIND_RUNTIME", "globalTid"),
            ("NVTX_EVENTS", "globalTid"),
        ):
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            chosen = [
                f"{c} + {1 << 24}" if c == process else "1" if c == "deviceId" else c
                for c in columns
            ]
            ours = f" WHERE domainId = {nsight.NCCL_DOMAIN}" * (table == "NVTX_EVENTS")
            db.execute(f"INSERT INTO {table} SELECT {', '.join(chosen)} FROM {table}{ours}")
    db.close()
