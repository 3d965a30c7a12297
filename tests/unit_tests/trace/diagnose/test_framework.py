"""The software is told from the profile, and remedies are its own settings."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from overlapkit.config.megatron_lm.flags import known_flag
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.diagnose.framework import TITLES
from overlapkit.trace.diagnose.remedies import _GENERAL, _OF, Problem, remedy
from overlapkit.trace.rank_report import Options
from overlapkit.trace.read.host.marks import Framework
from support import tiny_trace as tiny

MEGATRONS = ("ddp.", "comm_overlap.", "model.", "overlapkit explain", "overlap_grad_reduce")


def host(name, ts, dur, cat="user_annotation", tid=1, **args):
    event = {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": ts, "dur": dur}
    return {**event, "args": args}


def one_reduction(marks=(), group="mesh_dp", kernel=tiny.REDUCE_SCATTER, wrap="nccl:x"):
    """Three steps, each of compute and one exposed reduction."""
    events = []
    for n in range(3):
        at = 10_000 * n
        for number, (name, begin, length) in enumerate(
            [(tiny.GEMM, 10, 6000), (kernel, 6010, 3500)]
        ):
            launch = 2 * n + number + 1
            extra = {"Process Group Description": group} if number and group else {}
            events += [
                host("cudaLaunchKernel", at + 1 + number, 1, "cuda_runtime", correlation=launch),
                tiny.kernel(name, at + begin, length, 7 + 13 * number, correlation=launch, **extra),
            ]
        events += [host(f"ProfilerStep#{n}", at, 10_000), host(wrap, at + 2, 5)]
        events += [host(mark, at + 3, 3, cat) for mark, cat in marks]
    return events


def report(tmp_path, events, **head):
    (one,) = analyse_file(tiny.write(tmp_path / "t.json", events, **head), Options())
    return one


FRAME = "python_function"
CASES = {
    "megatron": [("megatron/core/distributed/finalize_model_grads.py(1): finalize", FRAME)],
    "deepspeed": [
        ("deepspeed/runtime/engine.py(2): step", FRAME),
        ("megatron/core/models/gpt.py(1): forward", FRAME),
    ],
    "torchtitan": [("torchtitan/train.py(1): train_step", FRAME), ("FSDP::all_gather", "cpu_op")],
    "fsdp2": [("FSDP::post_backward_reduce", "user_annotation")],
    "fsdp1": [("FullyShardedDataParallel.forward", "cpu_op")],
    "ddp": [("DistributedDataParallel.forward", "user_annotation")],
    "vllm": [("vllm/worker/worker.py(1): execute_model", FRAME)],
    "sglang": [("sglang/srt/model_executor.py(1): forward", FRAME)],
    None: [("mine/train.py(1): step", FRAME)],
}


@pytest.mark.parametrize("name", CASES)
def test_names_on_the_host_tell_the_software_and_the_remedy_is_its_own(name, tmp_path):
    found = report(tmp_path, one_reduction(CASES[name]))
    assert found.framework.name == name
    for diagnosis in found.diagnoses:
        is_megatrons = any(word in diagnosis.remedy + diagnosis.message for word in MEGATRONS)
        assert is_megatrons == (name == "megatron")
        assert (diagnosis.rule is not None) == (name == "megatron")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("ddp", "bucket_cap_mb"),
        ("fsdp2", "fully_shard"),
        ("fsdp1", "auto_wrap_policy"),
        ("deepspeed", "reduce_bucket_size"),
        ("torchtitan", "fully_shard"),
        ("megatron", "bucket_size"),
        (None, "several buckets"),
    ],
)
def test_one_late_reduction_has_the_setting_that_divides_it(name, word, tmp_path):
    (diagnosis,) = report(tmp_path, one_reduction(CASES[name])).diagnoses
    assert diagnosis.id == "single-bucket" and word in diagnosis.remedy


def exposed_before_compute(marks, group, kernel, called):
    """Three steps that begin with a collective, so that no other diagnosis knows it."""
    described = {"Process Group Description": group, "Collective name": called, "Group size": 8}
    events = [host(mark, 3, 3, cat) for mark, cat in marks]
    for n in range(3):
        at = 10_000 * n
        events += [tiny.kernel(kernel, at, 2_000, 20, **described), tiny.step(n, at, 10_000)]
        events.append(tiny.kernel(tiny.GEMM, at + 2_000, 8_000))
    return events


@pytest.mark.parametrize(
    ("name", "group", "kernel", "called", "word"),
    [
        ("fsdp2", "mesh_dp_replicate", "ncclDevKernel_AllReduce_x", "allreduce", "replicas"),
        ("fsdp1", "mesh_dp_replicate", "ncclDevKernel_AllReduce_x", "allreduce", "HYBRID_SHARD"),
        ("torchtitan", "mesh_dp_replicate", "ncclDevKernel_AllReduce_x", "allreduce", "replicas"),
        ("ddp", "mesh_dp", "ncclDevKernel_AllReduce_x", "allreduce", "bucket_cap_mb"),
        ("deepspeed", "mesh_dp", "ncclDevKernel_AllReduce_x", "allreduce", "overlap_comm"),
        ("megatron", "CONTEXT_PARALLEL_GROUP", "ncclDevKernel_SendRecv", "all_to_allv", "p2p"),
        ("fsdp2", "mesh_cp", "ncclDevKernel_SendRecv", "all_to_allv", "beside"),
        ("ddp", "mesh_cp", "ncclDevKernel_Broadcast_x", "broadcast", "beside"),
        ("megatron", "EMBEDDING_GROUP", "ncclDevKernel_AllReduce_x", "allreduce", "explain CONFIG"),
    ],
)
def test_the_remedy_is_for_what_is_exposed_most(name, group, kernel, called, word, tmp_path):
    events = exposed_before_compute(CASES[name], group, kernel, called)
    (diagnosis,) = report(tmp_path, events).diagnoses
    assert diagnosis.id == "exposed-communication" and word in diagnosis.remedy
    is_exchange = (name, called) == ("megatron", "all_to_allv")
    assert (diagnosis.rule == "core.cp-exchange-exposed") == is_exchange


def test_training_diagnoses_are_not_made_of_an_inference_engine(tmp_path):
    found = report(tmp_path, one_reduction(CASES["vllm"]))
    assert [d.id for d in found.diagnoses] == ["exposed-communication"]
    assert "settings of training do not apply" in found.diagnoses[0].remedy


def test_groups_with_megatrons_descriptions_tell_megatron(tmp_path):
    found = report(tmp_path, one_reduction(group="DATA_PARALLEL_GROUP_WITH_CP"))
    assert (found.framework.name, found.framework.evidence) == (
        "megatron",
        ("process group DATA_PARALLEL_GROUP_WITH_CP",),
    )


def test_groups_that_the_file_lists_count(tmp_path):
    info = {"pg_config": [{"pg_name": "1", "pg_desc": "TENSOR_MODEL_PARALLEL_GROUP", "ranks": []}]}
    found = report(tmp_path, one_reduction(group=""), distributedInfo=info)
    assert found.framework.name == "megatron"


def test_megatrons_remedies_name_keys_and_flags_since_the_profile_does_not_tell_which(tmp_path):
    (diagnosis,) = report(tmp_path, one_reduction(CASES["megatron"])).diagnoses
    assert "comm_overlap.bucket_size" in diagnosis.advice
    assert "in Megatron-LM: pass --ddp-bucket-size" in diagnosis.advice


@pytest.mark.parametrize("problem", sorted(_OF["megatron"]))
def test_flags_of_remedies_are_flags_of_megatron_lm(problem):
    found = remedy(problem, "megatron")
    named = re.findall(r"--[a-z][a-z0-9-]+", found.flags)
    assert all(known_flag(flag) is not None for flag in named)
    assert bool(named) == (re.search(r"[a-z]_[a-z]\w+", found.text) is not None)


@pytest.mark.parametrize("group", ["mesh_dp_shard", "mesh_tp", "default_pg", "tp_group", ""])
def test_other_groups_tell_nothing(group, tmp_path):
    assert report(tmp_path, one_reduction(group=group)).framework.name is None


def test_every_software_has_a_title_and_known_problems():
    assert set(TITLES) == set(get_args(Framework))
    for own in _OF.values():
        assert set(own) <= set(get_args(Problem))
    for problem in _GENERAL:
        assert remedy(problem, None).rule is None


def test_an_engine_that_runs_kernels_of_another_one_is_told_by_its_own(tmp_path):
    borrowed = tiny.kernel("void vllm::act_and_mul_kernel<c10::BFloat16>(int)", 9_600, 10)
    own = tiny.kernel("void sglang::cross_device_reduce_2stage<half, 8>(int)", 9_700, 10)
    events = one_reduction()
    assert report(tmp_path, [*events, borrowed]).framework.name == "vllm"
    assert report(tmp_path, [*events, borrowed, own]).framework.name == "sglang"
    frame = host("sglang/srt/model_executor.py(1): forward", 3, 3, FRAME)
    assert report(tmp_path, [*events, borrowed, frame]).framework.name == "sglang"
