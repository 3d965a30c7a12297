"""What is said about a Megatron-LM job: its flags and variables, with the lines of its script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "megatron_lm"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.sh")) if path.stem != "two_launches"]
SIZES = """--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096
    --vocab-size 32000 --micro-batch-size 1 --global-batch-size 128 --bf16"""
KEY = re.compile(
    r"(?<![\w./-])(?:model|ddp|optimizer|train|comm_overlap|mixed_precision|megatron_lm|env)\.\w+\b"
    r"(?! \((?:no flag|set by --|--no-))"
)
BARE = re.compile(r"\b(?:sequence_parallel|use_distributed_optimizer|recompute_\w+|tp_comm_\w+)\b")


def written(config: Any, flags: str, *, nodes: int = 2, name: str = "train.sh") -> str:
    text = f"""export CUDA_DEVICE_MAX_CONNECTIONS=1
ARGS=(
    {SIZES}
{flags}
)
torchrun --nproc-per-node 8 --nnodes {nodes} pretrain_gpt.py "${{ARGS[@]}}"
"""
    return str(config(text, name))


DENSE = """    --tensor-model-parallel-size 4 --pipeline-model-parallel-size 2
    --num-layers-per-virtual-pipeline-stage 4
    --no-overlap-p2p-communication
    --tp-comm-overlap
    --overlap-grad-reduce --overlap-param-gather"""
EXPERTS = """    --num-experts 8 --moe-router-topk 2 --moe-token-dispatcher-type alltoall
    --expert-model-parallel-size 8 --moe-shared-expert-intermediate-size 2048
    --moe-shared-expert-overlap --overlap-moe-expert-parallel-comm --delay-wgrad-compute
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1"""
CONTEXT = """    --context-parallel-size 4 --cp-comm-type a2a --ddp-bucket-size 1000000
    --overlap-param-gather-with-optimizer-step --grad-reduce-in-bf16"""
SHARDED = """    --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params
    --use-nccl-ub --no-gradient-accumulation-fusion"""
FP8 = """    --tensor-model-parallel-size 8 --sequence-parallel --tp-comm-overlap
    --fp8-format hybrid --fp8-param-gather --use-distributed-optimizer
    --overlap-grad-reduce --overlap-param-gather --no-align-param-gather
    --ddp-num-buckets 8 --tp-comm-bootstrap-backend mpi"""
JOBS = {"dense": DENSE, "experts": EXPERTS, "context": CONTEXT, "sharded": SHARDED, "fp8": FP8}


@pytest.mark.parametrize("job", JOBS)
def test_a_report_names_no_key_of_a_configuration(job: str, overlapkit: Any, config: Any) -> None:
    name = written(config, JOBS[job])
    text = overlapkit("explain", name, "--gpu", "h100").out
    assert "Data parallel" in text
    assert not KEY.findall(text) and not BARE.findall(text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_so_do_reports_on_other_scripts(script: Path, overlapkit: Any) -> None:
    text = overlapkit("explain", str(script), "--gpu", "h100", "GPUS=8").out
    assert "Data parallel" in text
    assert not KEY.findall(text) and not BARE.findall(text)


@pytest.mark.parametrize("job", JOBS)
def test_its_page_and_its_annotations_name_none(
    job: str, overlapkit: Any, config: Any, tmp_path: Path
) -> None:
    name, page = written(config, JOBS[job]), tmp_path / "page.html"
    annotated = overlapkit("explain", name, "--gpu", "h100", "--format", "github").out
    overlapkit("explain", name, "--gpu", "h100", "--html", str(page))
    html = re.sub(r"</?code>|<br>|</?span[^>]*>", "", page.read_text())
    assert "Effective values" in html
    for text in (annotated, html):
        assert not KEY.findall(text) and not BARE.findall(text)


def test_a_finding_has_its_flag_its_line_and_the_flags_to_pass(
    overlapkit: Any, config: Any
) -> None:
    name = written(config, DENSE)
    text = overlapkit("explain", name, "--gpu", "h100", "--brief").out
    assert f"{name}:8:5: ERROR --tp-comm-overlap on: --sequence-parallel is off" in text
    assert "-> pass --sequence-parallel, or omit --tp-comm-overlap" in text
    assert "ERROR --num-layers-per-virtual-pipeline-stage" in text


def test_a_flag_that_turns_off_is_on_where_it_is_passed(overlapkit: Any, config: Any) -> None:
    text = overlapkit("explain", written(config, DENSE), "--gpu", "h100").out
    assert "granted --no-overlap-p2p-communication on:" in text
    without = DENSE.replace("--no-overlap-p2p-communication", "")
    text = overlapkit("explain", written(config, without), "--gpu", "h100").out
    assert "model.overlap_p2p_comm (--no-overlap-p2p-communication turns it off) on" in text
    assert "model.batch_p2p_comm (no flag) off" in text


def test_the_document_keeps_the_knob_and_has_the_flag(overlapkit: Any, config: Any) -> None:
    result = overlapkit("explain", written(config, DENSE), "--gpu", "h100", "--json")
    flags = {d["knob"]: d["flag"] for d in result.document["decisions"]}
    assert flags["model.tp_comm_overlap"] == "--tp-comm-overlap"
    assert flags["model.overlap_p2p_comm"] == "--no-overlap-p2p-communication"
    assert flags["model.batch_p2p_comm"] is None
    assert flags["env.CUDA_DEVICE_MAX_CONNECTIONS"] is None


def test_a_configuration_with_keys_keeps_them(overlapkit: Any) -> None:
    example = str(Path(__file__).parents[3] / "examples/pitfalls_16xh100.yaml")
    result = overlapkit("explain", example, "--world-size", "16", "--json")
    assert all(d["flag"] is None for d in result.document["decisions"])
    assert "--tp-comm-overlap" not in result.out


def test_a_change_of_flags_is_said_in_flags(overlapkit: Any, config: Any) -> None:
    first = written(config, DENSE)
    second = written(
        config,
        DENSE.replace("--no-overlap-p2p-communication", "--sequence-parallel")
        + " --use-distributed-optimizer",
        name="other.sh",
    )
    text = overlapkit("explain", first, second, "--gpu", "h100").out
    assert "Because of --no-overlap-p2p-communication on -> off" in text
    assert "finding gone  --num-layers-per-virtual-pipeline-stage (error by" in text
    assert text.count("--use-distributed-optimizer off -> on, ") <= 1
    assert not KEY.findall(text)


def test_a_script_and_a_configuration_are_compared_by_keys(overlapkit: Any, config: Any) -> None:
    example = str(Path(__file__).parents[3] / "examples/pitfalls_16xh100.yaml")
    result = overlapkit(
        "explain", written(config, DENSE), example, "--world-size", "16", "--world-size", "16"
    )
    assert "ddp.use_distributed_optimizer" in result.out


@pytest.mark.parametrize("job", JOBS)
def test_fixes_are_said_in_flags(job: str, overlapkit: Any, config: Any) -> None:
    result = overlapkit("explain", "--diff", written(config, JOBS[job]), "--gpu", "h100")
    assert not KEY.findall(result.out)
    if job == "dense":
        lines = result.out.splitlines()
        fixed = [line for line in lines if "--use-distributed-optimizer: not set -> on" in line]
        assert len(fixed) == 1
        assert any("--no-overlap-p2p-communication: on -> not set" in line for line in lines)


@pytest.mark.parametrize("job", JOBS)
def test_doctor_and_an_audit_speak_flags(
    job: str, doctor: Any, overlapkit: Any, config: Any, tmp_path: Path
) -> None:
    name = written(config, JOBS[job])
    told = doctor("--from-megatron-lm", name, "--gpu", "h100").out
    audited = overlapkit("audit", str(tmp_path), "--gpu", "h100").out
    assert "configuration: " in told and "1 configuration" in audited
    assert not KEY.findall(told) and not KEY.findall(audited)
    if job == "dense":
        assert f"configuration: {name}:8:5: --tp-comm-overlap: --sequence-parallel is off" in told


def test_doctor_asks_only_for_the_flags_that_are_missing(doctor: Any, config: Any) -> None:
    name = written(config, "    --use-distributed-optimizer")
    told = doctor("--from-megatron-lm", name, "--gpu", "h100").out
    assert "-> give --overlap-grad-reduce\n" in told


def test_a_fork_keeps_its_spelling(overlapkit: Any, config: Any) -> None:
    script = config(
        "NPROC_PER_NODE=8 megatron sft --num_layers 32 --hidden_size 4096 "
        "--num_attention_heads 32 --seq_length 4096 --tensor_model_parallel_size 2 "
        "--sequence_parallel false --tp_comm_overlap true\n",
        "train.sh",
    )
    text = overlapkit("explain", script, "--gpu", "h100").out
    assert "--tp_comm_overlap on" in text and "pass --sequence_parallel" in text
    assert "--tp-comm-overlap" not in text and "--sequence-parallel" not in text


def test_gathering_without_the_distributed_optimizer_is_said_once(
    overlapkit: Any, config: Any
) -> None:
    name = written(config, "    --overlap-grad-reduce --overlap-param-gather")
    document = overlapkit("explain", name, "--gpu", "h100", "--json").document
    about = [d for d in document["decisions"] if d["knob"] == "ddp.overlap_param_gather"]
    assert [(d["rule"], d["outcome"]) for d in about] == [("lm.param-gather-needs", "error")]


def test_experts_need_not_be_split(overlapkit: Any, config: Any) -> None:
    name = written(
        config,
        "    --tensor-model-parallel-size 4 --sequence-parallel --num-experts 8\n"
        "    --expert-model-parallel-size 4 --expert-tensor-parallel-size 4",
        nodes=1,
    )
    text = overlapkit("explain", name, "--gpu", "h100", "--brief").out
    assert "-> pass --expert-tensor-parallel-size 1, or keep it and reduce EP to 2" in text


def test_a_knob_that_a_script_turns_off_stays_a_finding(doctor: Any, config: Any) -> None:
    layout = "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4 $MORE"
    off = written(config, f"    {layout} --no-overlap-p2p-communication")
    told = doctor("--from-megatron-lm", off, "--gpu", "h100").out
    assert "[off.overlap_p2p_comm]" in told and "--no-overlap-p2p-communication is passed" in told
    assert "note: not certain, since flags are not known: gradients of" in told


def test_where_to_export_is_no_alternative_to_it(config: Any, overlapkit: Any) -> None:
    flags = "    --tensor-model-parallel-size 4 --sequence-parallel --tp-comm-overlap"
    script = written(config, flags)
    out = overlapkit("explain", script, "--gpu", "a100", "--brief").out
    assert f"-> export UB_SKIPMC=1 in {script}, before the process starts" in out
