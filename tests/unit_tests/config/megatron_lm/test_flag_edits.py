"""Changes of settings as changes of flags: made, read again, and said."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.bridge.training.edits import REMOVED, Edit
from megatron.bridge.training.versions import KNOWN
from overlapkit.config.megatron_lm.flag_edits import (
    dashed,
    flag_edit,
    flag_edits,
    in_flags,
    make,
)
from overlapkit.config.megatron_lm.flag_versions import versions_of
from overlapkit.config.megatron_lm.flags import DEFAULTS, FLAGS
from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments
from overlapkit.config.schema import section_fields
from support.megatron_lm_cases import arguments

VALUES: dict[str, Any] = {"int": 3, "str": "x", "names": ["a", "b"], "freq": [1, 0]}
KEYS = {key: flag for flag, declared in FLAGS.items() for key in declared.keys}
NOT_EXPRESSED = [
    # Only their presence counts, so that no value is known.
    ("megatron_lm.save", True),
    # No version of today has the flag.
    ("model.moe_use_legacy_grouped_gemm", True),
    ("ddp.use_custom_fsdp", True),
    ("megatron_lm.use_legacy_models", True),
]


def default(key: str) -> Any:
    section, _, name = key.partition(".")
    return DEFAULTS.get(key, section_fields(section)[name].default)


def read(words: list[str], key: str) -> Any:
    section, _, name = key.partition(".")
    values = read_megatron_lm_arguments(words).values.get(section) or {}
    return values.get(name, default(key))


def values_of(key: str) -> list[Any]:
    kind = FLAGS[KEYS[key]].kind
    return [True, False] if kind in ("on", "off", "given") else [VALUES[kind]]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("is_given", [False, True])
def test_a_change_is_what_is_read_again(key: str, is_given: bool) -> None:
    flag = KEYS[key]
    given = [flag, *([] if FLAGS[flag].kind in ("on", "off") else ["9"])] if is_given else []
    for value in [*values_of(key), REMOVED]:
        change = flag_edit(Edit(key, value))
        assert bool(change.why_not) == ((key, value) in NOT_EXPRESSED), (key, value)
        if change.why_not:
            continue
        got = read(make(change, [*arguments(""), *given]), key)
        if value is REMOVED:
            assert got == default(key), (key, change)
        else:
            assert got == value or (value is False and not got), (key, value, change)


@pytest.mark.parametrize("core", [stack.core or "" for stack in KNOWN])
def test_only_flags_of_the_version_are_added(core: str) -> None:
    for key in KEYS:
        for value in values_of(key):
            for words in flag_edit(Edit(key, value), core).add:
                known = versions_of(words[0])
                assert known is not None and known.versions.contains(core), (key, words)


CHANGES: list[tuple[str, list[Edit], str]] = [
    # given, changes, made
    (
        "--tensor-model-parallel-size 1 --bf16",
        [Edit("model.tensor_model_parallel_size", 2)],
        "--tensor-model-parallel-size 2 --bf16",
    ),
    ("--num-layers=4 --bf16", [Edit("model.num_layers", 8)], "--num-layers=8 --bf16"),
    ("--num_layers 4 --bf16", [Edit("model.num_layers", 8)], "--num_layers 8 --bf16"),
    (
        "--overlap_grad_reduce true --bf16",
        [Edit("ddp.overlap_grad_reduce", False)],
        "--bf16",
    ),
    ("--fp16 --swiglu", [Edit("model.bf16", True)], "--swiglu --bf16"),
    (
        "--recompute-modules core_attn moe --bf16",
        [Edit("model.recompute_modules", ["core_attn"])],
        "--recompute-modules core_attn --bf16",
    ),
    (
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers-per-virtual-pipeline-stage 4",
        [Edit("model.virtual_pipeline_model_parallel_size", 2)],
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-virtual-stages-per-pipeline-rank 2",
    ),
    (
        "--enable-cuda-graph --cuda-graph-impl local --bf16",
        [Edit("model.cuda_graph_impl", REMOVED)],
        "--bf16",
    ),
    (
        "--recompute-activations --bf16",
        [Edit("model.recompute_granularity", REMOVED)],
        "--bf16",
    ),
    (
        "--bf16",
        [Edit("model.num_query_groups", 4)],
        "--bf16 --num-query-groups 4 --group-query-attention",
    ),
    (
        "--accumulate-allreduce-grads-in-fp32 --bf16",
        [Edit("ddp.grad_reduce_in_fp32", False)],
        "--bf16 --grad-reduce-in-bf16",
    ),
    (
        "--moe-pad-expert-input-to-capacity --bf16",
        [Edit("megatron_lm.moe_pad_expert_input_to_capacity", REMOVED)],
        "--bf16",
    ),
    ("--bf16", [Edit("megatron_lm.moe_permute_fusion", True)], "--bf16 --moe-permute-fusion"),
    ("--lr 1 --lr 2", [Edit("megatron_lm.lr", 3)], "--lr 3"),
    (
        "--bf16",
        [Edit("ddp.overlap_param_gather", True), Edit("optimizer.overlap_param_gather", True)],
        "--bf16 --overlap-param-gather",
    ),
    ("--no-overlap-p2p-communication --bf16", [Edit("model.overlap_p2p_comm", True)], "--bf16"),
    ("--no-overlap-p2p-communication --bf16", [Edit("model.batch_p2p_comm", False)], "--bf16"),
    ("--bf16", [Edit("model.batch_p2p_comm", True)], "--bf16 --no-overlap-p2p-communication"),
    (
        "--bf16",
        [Edit("model.moe_layer_freq", [0, 1, 1])],
        "--bf16 --moe-layer-freq [0,1,1]",
    ),
]


@pytest.mark.parametrize(("given", "edits", "made"), CHANGES)
def test_a_command_line_is_changed(given: str, edits: list[Edit], made: str) -> None:
    assert make(flag_edits(edits), given.split()) == made.split()


def test_what_is_no_flag_says_why() -> None:
    for edit, why in (
        (Edit("env.NCCL_P2P_NET_CHUNKSIZE", 1), "a variable of the job's environment"),
        (Edit("comm_overlap.tp_comm_overlap", True), "no flag of any version"),
        (Edit("megatron_lm.cuda_graph_modules_of_mine", 1), "no flag of any version"),
        (Edit("megatron_lm.moe_permute_fusion", 4), "cannot have the value 4"),
        (Edit("model.tp_comm_overlap_cfg", {"qkv_fprop": {}}), "cannot set"),
    ):
        assert why in flag_edit(edit).why_not
    partly = flag_edits([Edit("model.bf16", True), Edit("comm_overlap.tp_comm_overlap", True)])
    assert partly.why_not and not partly.add


def test_of_changes_that_exclude_each_other_the_later_one_stays() -> None:
    layers = Edit("megatron_lm.num_layers_per_virtual_pipeline_stage", 2)
    chunks = Edit("model.virtual_pipeline_model_parallel_size", 4)
    first, last = flag_edits([layers, chunks]), flag_edits([chunks, layers])
    assert make(first, ["--bf16"]) == ["--bf16", "--num-virtual-stages-per-pipeline-rank", "4"]
    assert make(last, ["--bf16"]) == ["--bf16", "--num-layers-per-virtual-pipeline-stage", "2"]


def test_a_flag_of_another_version_is_not_added() -> None:
    edit = Edit("model.cuda_graph_modules", ["attn"])
    assert not flag_edit(edit, "0.18.2").why_not
    assert "Megatron-LM 0.16.1" in flag_edit(edit, "0.16.1").why_not
    old = flag_edit(Edit("model.tp_comm_split_ag", False), "0.15.0")
    assert old.add == (("--disable-tp-comm-split-ag",),)


def test_a_change_is_said_in_flags() -> None:
    edits = [
        Edit("ddp.overlap_grad_reduce", True),
        Edit("model.tensor_model_parallel_size", 2),
        Edit("model.recompute_granularity", REMOVED),
        Edit("env.CUDA_DEVICE_MAX_CONNECTIONS", 1),
        Edit("env.NCCL_GRAPH_REGISTER", REMOVED),
    ]
    assert in_flags(edits, passed=["--recompute-activations"]) == (
        "pass --overlap-grad-reduce and --tensor-model-parallel-size 2, and omit "
        "--recompute-activations, and export CUDA_DEVICE_MAX_CONNECTIONS=1, and unset "
        "NCCL_GRAPH_REGISTER"
    )
    assert in_flags([Edit("comm_overlap.tp_comm_overlap", True)]) == ""


def test_the_name_of_a_flag() -> None:
    assert dashed("--overlap_grad_reduce") == "--overlap-grad-reduce"
    assert dashed("--num-layers=4") == "--num-layers"
    assert dashed("--a_fork_of_mine") == "--a_fork_of_mine"
