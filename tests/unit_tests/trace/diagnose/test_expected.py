"""What a configuration says is compared with what the profile of the run shows."""

from __future__ import annotations

import pytest

from support import tiny_trace as tiny
from support.documents import check_document
from support.trace_generator import SCENARIOS, write_kineto

MODEL = "num_layers: 8, hidden_size: 1024, num_attention_heads: 8, bf16: true"


@pytest.fixture
def traced(overlapkit, config, tmp_path):
    """The document of a generated profile, with the configuration of these sections."""

    def run(name: str, model: str = "", rest: str = "") -> dict:
        (truth,) = write_kineto(SCENARIOS[name].but(noise=0, steps=2, ranks=1), tmp_path)
        text = f"model: {{{MODEL}{model}}}\n{rest}\n"
        path = config(text, "run.yaml")
        document = overlapkit("trace", truth.path, "--config", path, "--json").document
        check_document(document)
        return document

    return run


DISTRIBUTED = "ddp: {use_distributed_optimizer: true}\n"
TP4 = ", tensor_model_parallel_size: 4"


@pytest.mark.parametrize(
    ("name", "model", "rest", "says"),
    [
        ("dp exposed", "", "ddp: {use_distributed_optimizer: false}", "distributed optimizer off"),
        ("dp exposed", TP4.replace("4", "2"), DISTRIBUTED, "TP 2"),
        (
            "tp exposed",
            f"{TP4}, sequence_parallel: true",
            DISTRIBUTED + "comm_overlap: {tp_comm_overlap: true}",
            "TP overlap on",
        ),
        (
            "tp userbuffers",
            f"{TP4}, sequence_parallel: true",
            DISTRIBUTED + "comm_overlap: {tp_comm_overlap: false}",
            "TP overlap off",
        ),
        ("dp exposed", ", pipeline_model_parallel_size: 2", DISTRIBUTED, "PP 2"),
        (
            "ep all-to-all",
            ", num_moe_experts: 8, expert_model_parallel_size: 4, "
            "moe_token_dispatcher_type: flex, moe_flex_dispatcher_backend: deepep",
            DISTRIBUTED,
            "flex dispatcher with deepep",
        ),
        (
            "ep deepep",
            ", num_moe_experts: 8, expert_model_parallel_size: 4, "
            "moe_token_dispatcher_type: alltoall",
            DISTRIBUTED,
            "alltoall dispatcher",
        ),
    ],
)
def test_a_profile_of_another_configuration_is_told(traced, name, model, rest, says):
    found = traced(name, model, rest)["contradictions"]
    assert any(says in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("name", "model", "rest"),
    [
        (
            "dp exposed",
            "",
            DISTRIBUTED + "comm_overlap: {tp_comm_overlap: false, overlap_grad_reduce: false}",
        ),
        (
            "tp userbuffers",
            f"{TP4}, sequence_parallel: true",
            DISTRIBUTED + "comm_overlap: {tp_comm_overlap: true}",
        ),
        ("pp bubbles", ", pipeline_model_parallel_size: 4", DISTRIBUTED),
        (
            "ep all-to-all",
            ", num_moe_experts: 8, expert_model_parallel_size: 4, "
            "moe_token_dispatcher_type: alltoall",
            DISTRIBUTED,
        ),
    ],
)
def test_a_profile_of_the_configuration_contradicts_nothing(traced, name, model, rest):
    assert traced(name, model, rest)["contradictions"] == []


def test_the_all_reduce_of_a_distributed_optimizer_is_told(overlapkit, config, tmp_path):
    name = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
    group = {
        "Process Group Description": "DATA_PARALLEL_GROUP_WITH_CP",
        "Group size": 8,
        "Collective name": "allreduce",
    }
    events = []
    for number in range(3):
        at = 10_000 * (number + 1)
        events += [tiny.kernel(tiny.GEMM, at, 5_000), tiny.step(number, at, 10_000)]
        events.append(tiny.kernel(name, at + 5_000, 4_000, stream=9, **group))
    head = {"distributedInfo": {"rank": 0, "world_size": 8}}
    trace = tiny.write(tmp_path / "trace.json", events, **head)
    path = config(f"model: {{{MODEL}}}\n{DISTRIBUTED}", "run.yaml")
    document = overlapkit("trace", trace, "--config", path, "--json").document
    (sentence,) = document["contradictions"]
    assert "distributed optimizer on" in sentence and "all_reduce" in sentence
    assert sentence in overlapkit("trace", trace, "--config", path).out.replace("\n", " ")


def test_a_setting_that_the_configuration_has_off_is_the_cause(traced):
    document = traced(
        "dp exposed",
        "",
        DISTRIBUTED + "comm_overlap: {tp_comm_overlap: false, overlap_grad_reduce: false}",
    )
    (late,) = [d for d in document["diagnoses"] if d["id"] == "grad-reduce-after-backward"]
    assert "The configuration has ddp.overlap_grad_reduce off" in late["message"]
    assert "not in effect" not in late["message"]


def test_a_setting_that_the_configuration_has_on_is_no_remedy(traced):
    document = traced("dp exposed", "", DISTRIBUTED + "comm_overlap: {tp_comm_overlap: false}")
    (late,) = [d for d in document["diagnoses"] if d["id"] == "grad-reduce-after-backward"]
    assert "although the configuration has ddp.overlap_grad_reduce on" in late["message"]
    assert "overlap_grad_reduce=true" not in late["remedy"] and late["rule"] is None
    one = traced("one bucket", "", DISTRIBUTED + "comm_overlap: {tp_comm_overlap: false}")
    (single,) = [d for d in one["diagnoses"] if d["id"] == "single-bucket"]
    assert single["rule"] == "core.single-bucket" and "bucket_size" in single["remedy"]


SCRIPT = (
    "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 8 --hidden-size 1024 "
    "--num-attention-heads 8 --seq-length 2048 --max-position-embeddings 2048 "
    "--micro-batch-size 1 --global-batch-size 16 --bf16 --use-distributed-optimizer "
    "--train-iters 10 --lr 1e-4 "
)


@pytest.mark.parametrize(
    ("name", "flags", "says", "remedy"),
    [
        (
            "dp exposed",
            "",
            "configuration has --overlap-grad-reduce off",
            "pass --overlap-grad-reduce",
        ),
        (
            "one bucket",
            "--overlap-grad-reduce --overlap-param-gather",
            "although the configuration has --overlap-grad-reduce on",
            "pass --ddp-bucket-size",
        ),
    ],
)
def test_of_a_launch_script_settings_and_remedies_are_its_flags(
    name, flags, says, remedy, overlapkit, config, tmp_path
):
    (truth,) = write_kineto(SCENARIOS[name].but(noise=0, steps=2, ranks=1), tmp_path)
    path = config(SCRIPT + flags, "run.sh")
    document = overlapkit("trace", truth.path, "--config", path, "--json").document
    check_document(document)
    assert document["contradictions"] == []
    ids = ("grad-reduce-after-backward", "single-bucket")
    (found,) = [d for d in document["diagnoses"] if d["id"] in ids]
    assert says in found["message"] and remedy in found["remedy"]
    for each in document["diagnoses"]:
        assert not any(key in each["message"] + each["remedy"] for key in ("ddp.", "comm_overlap."))


def test_of_a_bridge_configuration_remedies_name_no_flags(traced):
    document = traced(
        "dp exposed",
        "",
        DISTRIBUTED + "comm_overlap: {tp_comm_overlap: false, overlap_grad_reduce: false}",
    )
    assert document["diagnoses"]
    assert not any("--" in d["message"] + d["remedy"] for d in document["diagnoses"])


def test_a_configuration_that_is_not_the_runs_says_nothing_of_a_diagnosis(traced):
    document = traced("dp exposed", "", "ddp: {use_distributed_optimizer: false}")
    assert document["contradictions"]
    assert not any("configuration" in d["message"] for d in document["diagnoses"])


def test_what_cannot_be_compared_is_said(overlapkit, config, tmp_path):
    trace = tiny.write(tmp_path / "a.json", [tiny.kernel(tiny.GEMM, 0, 10), tiny.step(1, 0, 10)])
    path = config(f"model: {{{MODEL}}}\n", "run.yaml")
    document = overlapkit("trace", trace, "--config", path, "--json").document
    assert any("number of ranks" in w for w in document["warnings"])
