"""Every sentence about a configuration is said where profile and configuration differ only.

The configuration of a row stays the same; the profile is first one that the sentence is true of,
and then one that it is not. A sentence of the source that no row speaks of fails the last test.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from support.field.machine import TORCH_2_6, Machine
from support.field.megatron import COMBINE, DISPATCH
from support.field.ranks import configuration
from support.field.training import ALL_GATHER, ALL_REDUCE, GEMM, REDUCE_SCATTER, SEND_RECV, step
from support.sentences import unknown
from support.trace_answers import Answer, trace_of

USERBUFFERS = "void userbuffers_fp16_sum_inplace_gpu_rr_ag<8>(int, int)"
KINDS = {
    "DP reduce_scatter": (REDUCE_SCATTER, "_reduce_scatter_base", "DATA_PARALLEL_GROUP_WITH_CP"),
    "DP all_gather": (ALL_GATHER, "_allgather_base", "DATA_PARALLEL_GROUP_WITH_CP"),
    "DP all_reduce": (ALL_REDUCE, "allreduce", "DATA_PARALLEL_GROUP_WITH_CP"),
    "TP all_gather": (ALL_GATHER, "_allgather_base", "TENSOR_MODEL_PARALLEL_GROUP"),
    "TP reduce_scatter": (REDUCE_SCATTER, "_reduce_scatter_base", "TENSOR_MODEL_PARALLEL_GROUP"),
    "TP all_reduce": (ALL_REDUCE, "allreduce", "TENSOR_MODEL_PARALLEL_GROUP"),
    "CP all_to_all": (SEND_RECV, "all_to_allv", "CONTEXT_PARALLEL_GROUP"),
    "CP send": (SEND_RECV, "send", "CONTEXT_PARALLEL_GROUP"),
    "PP send": (SEND_RECV, "send", "PIPELINE_MODEL_PARALLEL_GROUP"),
    "EP all_to_all": (SEND_RECV, "all_to_allv", "EXPERT_MODEL_PARALLEL_GROUP"),
}


def profile(folder, shows: str) -> str:
    """Three steps that run these kinds, each after compute, as "DP reduce_scatter x8, +TP send x2".

    A number after an "x" is the size of the group, and what has a "+" runs without compute before
    it. "7 ranks: " before all is the size of the job, of 8 ranks elsewhere; of none, it is not
    stated.
    """
    head, _, listed = shows.rpartition(" ranks: ")
    kinds = [kind.partition(" x") for kind in listed.split(", ")]
    groups = {KINDS[kind.lstrip("+")][2]: list(range(int(size))) for kind, _, size in kinds if size}
    m = Machine(TORCH_2_6, world=int(head or "8") or None)
    m.groups = [(name, name, ranks) for name, ranks in groups.items()]
    for number in range(3):
        with step(m, number):
            for kind, _, size in kinds:
                if not kind.startswith("+"):
                    m.kernel(GEMM, 1000, after=[m.free(30)])
                if kind == "userbuffers":
                    m.kernel(USERBUFFERS, 300, 30)
                elif kind == "deepep":
                    for name in (DISPATCH, COMBINE):
                        m.kernel(name, 200, 30, after=[m.free()])
                else:
                    kernel, called, group = KINDS[kind.lstrip("+")]
                    described = (group, group, list(range(int(size))))
                    m.collective(kernel, 300, 30, called, group=described, after=[m.free()])
            m.wait(max(m.free(), m.free(30)))
    return m.write(folder / "t.json")


class Row(NamedTuple):
    """What the configuration has, and what the profile shows where it is said, and where not."""

    model: str
    rest: str
    says: str
    silent: str


DISTRIBUTED = "ddp: {use_distributed_optimizer: true}"
PLAIN = "ddp: {use_distributed_optimizer: false}"
UB = "comm_overlap: {tp_comm_overlap: true}\n" + DISTRIBUTED
NO_UB = "comm_overlap: {tp_comm_overlap: false}\n" + DISTRIBUTED
TP = ", tensor_model_parallel_size: 2"
SP = f"{TP}, sequence_parallel: true"
CP = ", context_parallel_size: 2"
EP = ", num_moe_experts: 8, expert_model_parallel_size: 4, moe_token_dispatcher_type: "
FLEX = f"{EP}flex, moe_flex_dispatcher_backend: deepep"
OF_DP = "DP reduce_scatter x8, DP all_gather x8"
OVERLAPS = "comm_overlap: {tp_comm_overlap: false}\n" + DISTRIBUTED
LATE = "DP reduce_scatter x8, +DP reduce_scatter x8"
OF_TP = "DP reduce_scatter x4, TP all_gather x2, TP reduce_scatter x2"

SCRIPT = (
    "torchrun --nproc-per-node {} pretrain_gpt.py --num-layers 8 --hidden-size 1024 "
    "--num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048 "
    "--micro-batch-size 1 --global-batch-size 64 --bf16 --use-distributed-optimizer "
    "--train-iters 10 --lr 1e-4 {}"
)

ROWS: dict[str, Row] = {
    "has the distributed optimizer on, which reduce-scatters gradients": Row(
        "", DISTRIBUTED, "DP all_reduce x8", OF_DP
    ),
    "data-parallel all_reduce and no reduce_scatter": Row(
        "", DISTRIBUTED, "DP all_reduce x8", OF_DP
    ),
    "has the distributed optimizer off, which all-reduces gradients": Row(
        "", PLAIN, OF_DP, "DP all_reduce x8"
    ),
    "makes the data-parallel size 4": Row(TP, DISTRIBUTED, OF_DP, "DP reduce_scatter x4"),
    "data-parallel groups of 8 ranks": Row(TP, DISTRIBUTED, OF_DP, "DP reduce_scatter x4"),
    "has TP overlap on": Row(SP, UB, OF_TP, "DP reduce_scatter x4, userbuffers"),
    "tensor-parallel collectives of NCCL and no userbuffers kernels": Row(
        SP, UB, OF_TP, "DP reduce_scatter x4, userbuffers"
    ),
    "has TP overlap off": Row(SP, NO_UB, "DP reduce_scatter x4, userbuffers", OF_TP),
    "has sequence parallelism on, which gathers and reduce-scatters activations": Row(
        SP, NO_UB, "DP reduce_scatter x4, TP all_reduce x2", OF_TP
    ),
    "only tensor-parallel all_reduce": Row(
        SP, NO_UB, "DP reduce_scatter x4, TP all_reduce x2", OF_TP
    ),
    "has sequence parallelism off, which all-reduces activations": Row(
        TP, NO_UB, OF_TP, "DP reduce_scatter x4, TP all_reduce x2"
    ),
    "tensor-parallel reduce_scatter": Row(
        TP, NO_UB, OF_TP, "DP reduce_scatter x4, TP all_reduce x2"
    ),
    "has TP 2": Row(TP, NO_UB, "DP reduce_scatter x4, TP all_reduce x4", OF_TP),
    "tensor-parallel groups of 4 ranks": Row(
        TP, NO_UB, "DP reduce_scatter x4, TP all_reduce x4", OF_TP
    ),
    "no tensor-parallel communication": Row(TP, NO_UB, "DP reduce_scatter x4", OF_TP),
    "has TP 1, and the profile shows tensor-parallel communication": Row(
        "", DISTRIBUTED, "DP reduce_scatter x8, TP all_reduce x2", OF_DP
    ),
    "no pipeline-parallel communication": Row(
        ", pipeline_model_parallel_size: 2, pipeline_dtype: bf16",
        DISTRIBUTED,
        "DP reduce_scatter x4",
        "DP reduce_scatter x4, PP send x2",
    ),
    "has cp_comm_type p2p": Row(
        CP,
        DISTRIBUTED,
        "DP reduce_scatter x8, CP all_to_all x2",
        "DP reduce_scatter x8, CP send x2",
    ),
    "a context-parallel all_to_all": Row(
        CP,
        DISTRIBUTED,
        "DP reduce_scatter x8, CP all_to_all x2",
        "DP reduce_scatter x8, CP send x2",
    ),
    "has cp_comm_type a2a": Row(
        f"{CP}, cp_comm_type: a2a",
        DISTRIBUTED,
        "DP reduce_scatter x8, CP send x2",
        "DP reduce_scatter x8, CP all_to_all x2",
    ),
    "and no all_to_all": Row(
        f"{CP}, cp_comm_type: a2a",
        DISTRIBUTED,
        "DP reduce_scatter x8, CP send x2",
        "DP reduce_scatter x8, CP all_to_all x2",
    ),
    "has the flex dispatcher with deepep": Row(
        FLEX,
        DISTRIBUTED,
        "DP reduce_scatter x8, EP all_to_all x4",
        "DP reduce_scatter x8, deepep",
    ),
    "an all_to_all of NCCL between experts and no kernels of that library": Row(
        FLEX,
        DISTRIBUTED,
        "DP reduce_scatter x8, EP all_to_all x4",
        "DP reduce_scatter x8, deepep",
    ),
    "has the alltoall dispatcher": Row(
        f"{EP}alltoall",
        DISTRIBUTED,
        "DP reduce_scatter x8, deepep",
        "DP reduce_scatter x8, EP all_to_all x4",
    ),
    "kernels of another library between experts": Row(
        f"{EP}alltoall",
        DISTRIBUTED,
        "DP reduce_scatter x8, deepep",
        "DP reduce_scatter x8, EP all_to_all x4",
    ),
    "starts 8 ranks, and the profile is of a job of 16": Row(
        SCRIPT.format(8, ""), "", f"16 ranks: {OF_DP}", OF_DP
    ),
    # What the configuration says of the setting that a diagnosis is about.
    ", although the configuration has ddp.overlap_grad_reduce on": Row(
        "", OVERLAPS, "DP reduce_scatter x8", OF_DP
    ),
    'set comm_overlap.bucket_size="auto", or to much less than the number of parameters per rank; '
    "and check that the profile is of this configuration": Row(
        "", OVERLAPS, "DP reduce_scatter x8", LATE
    ),
    "pass --ddp-bucket-size with much less than the number of parameters per rank": Row(
        SCRIPT.format(8, "--overlap-grad-reduce"), "", "DP reduce_scatter x8", LATE
    ),
    "check that the profile is of this configuration, with the versions that it is for": Row(
        "", OVERLAPS, LATE, "DP reduce_scatter x8"
    ),
    "Tensor-parallel collectives run through NCCL and are exposed. The configuration has "
    "model.tp_comm_overlap off": Row(SP, NO_UB, OF_TP, "DP reduce_scatter x4, userbuffers"),
    "look for stages of different length, and set batch_p2p_comm=false; and check that the profile "
    "is of this configuration": Row(
        ", pipeline_model_parallel_size: 2, pipeline_dtype: bf16, "
        "virtual_pipeline_model_parallel_size: 2",
        "comm_overlap: {tp_comm_overlap: false}\n" + DISTRIBUTED,
        "DP reduce_scatter x4, PP send x2, PP send x2, PP send x2, PP send x2",
        "PP send x2, DP reduce_scatter x4",
    ),
    "neither the profile nor the configuration states the number of ranks: what the configuration "
    "makes effective is not compared with the profile": Row(
        "", DISTRIBUTED, f"0 ranks: {OF_DP}", OF_DP
    ),
    "the configuration is not compared with the profile:": Row(
        SCRIPT.format(7, "--tensor-model-parallel-size 2"), "", f"0 ranks: {OF_TP}", OF_TP
    ),
}  # fmt: skip


def answer(folder, row: Row, shows: str) -> Answer:
    if row.model.startswith("torchrun"):
        config = folder / "run.sh"
        config.write_text(row.model)
    else:
        config = configuration(folder, row.model, row.rest)
    return trace_of(profile(folder, shows), config=str(config))


@pytest.mark.parametrize("sentence", ROWS)
def test_a_sentence_is_said_where_it_is_true_and_not_elsewhere(sentence, tmp_path):
    row = ROWS[sentence]
    assert sentence in answer(tmp_path, row, row.says).text
    assert sentence not in answer(tmp_path, row, row.silent).text


@pytest.mark.parametrize("source", ["diagnose/contradictions.py", "diagnose/expected.py"])
def test_every_sentence_of_the_source_has_its_row(source):
    assert unknown(source, ROWS) == []
