"""`overlapkit explain --from-megatron-lm`, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.decisions import FINDINGS
from support.megatron_lm_cases import arguments

SCRIPTS = Path(__file__).parents[2] / "data" / "megatron_lm"


def explained(overlapkit: Any, *given: str) -> dict[str, Any]:
    result = overlapkit("explain", "--from-megatron-lm", "--json", *given)
    assert result.status in (0, 1), result.err
    document: dict[str, Any] = json.loads(result.out)
    assert (result.status == 1) == bool(document["findings"])
    return document


def findings(document: dict[str, Any]) -> set[tuple[str, str]]:
    told = (d for d in document["decisions"] if d["outcome"] in FINDINGS)
    return {(d["rule"], d["knob"]) for d in told}


EXPECTED = {
    "gpt3_175b_array": set(),
    "llama3_70b_slurm": set(),
    "mixtral_8x7b_moe": set(),
    # 1 with TP = CP = 1, which Megatron-LM does not notice.
    "llama3_8b_string": {("launch.env-one-queue", "env.CUDA_DEVICE_MAX_CONNECTIONS")},
    "llama3_8b_fsdp": {("lm.env-connections", "env.CUDA_DEVICE_MAX_CONNECTIONS")},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_found_in_a_script(name: str, overlapkit: Any) -> None:
    document = explained(overlapkit, str(SCRIPTS / f"{name}.sh"))
    assert findings(document) == EXPECTED[name]
    assert document["framework"] == "megatron-lm"


def test_every_mistake_is_found_at_once(overlapkit: Any) -> None:
    document = explained(overlapkit, str(SCRIPTS / "mistakes.sh"), "GPUS=8")
    assert document["world_size"] == 32
    assert {rule for rule, _ in findings(document)} == {
        "lm.env-connections",
        "lm.tp-overlap-needs",
        "lm.interleaving-needs-stages",
        "lm.param-gather-needs",
        "lm.fp8-param-gather-needs",
    }
    for decision in document["decisions"]:
        if decision["outcome"] == "error":
            assert "comm_overlap" not in (decision["remedy"] or "")


def test_the_text_says_whose_rules_and_what_was_assumed(overlapkit: Any) -> None:
    result = overlapkit("explain", "--from-megatron-lm", str(SCRIPTS / "mixtral_8x7b_moe.sh"))
    assert result.status == 0
    assert "Megatron-LM's rules" in result.out
    assert "EXTRA_ARGS has no known value" in result.out
    bridge = overlapkit("explain", str(SCRIPTS.parents[2] / "examples/gpt_1b_8xh100.yaml"))
    assert bridge.status == 2 and "--world-size N is missing" in bridge.err


def test_arguments_behind_dashes(overlapkit: Any) -> None:
    words = arguments("--overlap-param-gather --sequence-parallel")
    document = explained(overlapkit, "--world-size", "8", "--", *words)
    assert document["config"] == "the arguments"
    assert {rule for rule, _ in findings(document)} == {
        "lm.param-gather-needs",
        "lm.sequence-parallel-off",
    }
    mended = explained(
        overlapkit,
        "--world-size",
        "8",
        "model.tensor_model_parallel_size=2",
        "ddp.overlap_param_gather=false",
        "--",
        *words,
    )
    assert findings(mended) == set()


def test_a_launcher_in_front_of_the_arguments_tells_the_gpus(overlapkit: Any) -> None:
    words = ["torchrun", "--nproc_per_node", "8", "--nnodes", "2", "pretrain_gpt.py"]
    document = explained(overlapkit, "--", *words, *arguments(""))
    assert document["world_size"] == 16


def test_the_environment_of_a_script_is_its_exports(overlapkit: Any, config: Any) -> None:
    line = f"torchrun --nproc_per_node 8 pretrain_gpt.py {' '.join(arguments(''))}"
    tensor = f"{line} --tensor-model-parallel-size 2"
    missing = config(tensor, "missing.sh")
    assert {r for r, _ in findings(explained(overlapkit, missing))} == {"lm.env-connections"}
    assert findings(explained(overlapkit, missing, "--gpu", "b200")) == {
        ("launch.env-fewer-queues", "env.CUDA_DEVICE_MAX_CONNECTIONS")
    }
    cluster = config("CUDA_DEVICE_MAX_CONNECTIONS=1\n", "cluster.env")
    assert findings(explained(overlapkit, missing, "--env-file", cluster)) == set()
    over = config(f"export CUDA_DEVICE_MAX_CONNECTIONS=8\n{tensor}", "over.sh")
    assert len(findings(explained(overlapkit, over, "--env-file", cluster))) == 1


def test_what_an_override_would_change(overlapkit: Any) -> None:
    path = str(SCRIPTS / "llama3_8b_string.sh")
    result = overlapkit("explain", "--from-megatron-lm", path, "b:TP=2", "--json")
    document = json.loads(result.out)
    changed = {c["knob"]: c["after"] for c in document["changes"] if c["kind"] == "knob"}
    assert changed["model.tensor_model_parallel_size"] == 2
    assert changed["model.tp_comm_overlap"] is True


def test_both_numbers_of_gpus_of_two_scripts(overlapkit: Any) -> None:
    paths = [str(SCRIPTS / f"{name}.sh") for name in ("llama3_8b_string", "llama3_70b_slurm")]
    document = json.loads(overlapkit("explain", "--from-megatron-lm", *paths, "--json").out)
    assert (document["before"]["world_size"], document["after"]["world_size"]) == (8, 64)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["mistakes.sh"], ["--world-size N is missing", "GPUS=value"]),
        (["two_launches.sh"], ["2 times", "two_launches.sh:6"]),
        (["two_launches.sh:99"], ["starts no Megatron-LM job"]),
        (["none.sh"], ["no such file"]),
        (["mistakes.sh", "comm_overlap.tp_comm_overlap=true"], ["Megatron-LM has no comm_overlap"]),
        (["mistakes.sh", "a.b.c=1"], ["unknown section 'a'"]),
        (["--", "--made-up", "3"], ["contain no flag of Megatron-LM"]),
        (["x", "--", "--num-layers", "3"], ["a script or its arguments, not both"]),
        (["--", "--num-layers", "3"], ["--world-size N is missing"]),
    ],
)
def test_bad_input_is_one_line(given: list[str], told: list[str], overlapkit: Any) -> None:
    first = given[0]
    named = [str(SCRIPTS / first), *given[1:]] if ".sh" in first else given
    result = overlapkit("explain", "--from-megatron-lm", *named)
    assert result.status == 2 and result.out == ""
    assert result.err.count("\n") == 1
    for words in told:
        assert words in result.err


@pytest.mark.parametrize("command", ["explain", "doctor", "plan"])
def test_a_script_is_read_without_the_switch(command: str, overlapkit: Any) -> None:
    given = [str(SCRIPTS / "mistakes.sh"), "GPUS=8", "--gpu", "h100", "--json"]
    plainly, switched = (
        overlapkit(command, *given, *more).document for more in ([], ["--from-megatron-lm"])
    )
    assert plainly == switched


def test_a_script_and_a_yaml_file_are_compared(overlapkit: Any, config: Any) -> None:
    script = str(SCRIPTS / "llama3_70b_slurm.sh")
    run = config("model: {tensor_model_parallel_size: 4}\nddp: {}\n")
    for names in ([script, run], [run, script]):
        # The script states the number of GPUs.
        document = overlapkit("explain", *names, "--json").document
        assert {document["before"]["config"], document["after"]["config"]} == set(names)
        assert document["before"]["world_size"] == document["after"]["world_size"] > 1
        assert document["changes"]


def test_arguments_without_the_switch_say_how(overlapkit: Any) -> None:
    result = overlapkit("explain", "--world-size", "8", "--", "--num-layers", "3")
    assert result.status == 2 and "--from-megatron-lm" in result.err


ONE_QUEUE = "export CUDA_DEVICE_MAX_CONNECTIONS=1\n"
OVERLAPPED = (
    "pretrain_gpt.py --num-layers 8 --hidden-size 256 --num-attention-heads 8 --seq-length 128 "
    "--bf16 --vocab-size 1024 --micro-batch-size 1 --global-batch-size 64 "
)
GRADIENTS = " --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"


def _rules_of(overlapkit, config, line: str, *options: str) -> dict[str, str]:
    script = config(f"#!/bin/bash\n{line}\n", "train.sh")
    result = overlapkit("explain", "--from-megatron-lm", script, "--json", *options)
    return {d["rule"]: d["outcome"] for d in result.document["decisions"]}


@pytest.mark.parametrize(
    ("flags", "gpu", "is_told"),
    [
        ("--tensor-model-parallel-size 2" + GRADIENTS, "h100", True),
        ("--context-parallel-size 2" + GRADIENTS, "a100", True),
        ("--tensor-model-parallel-size 2" + GRADIENTS, "b200", False),
        ("--tensor-model-parallel-size 2", "h100", False),
        ("--tensor-model-parallel-size 8" + GRADIENTS, "h100", False),
        (GRADIENTS, "h100", False),
    ],
)
def test_the_price_of_one_queue(flags: str, gpu: str, is_told: bool, overlapkit, config) -> None:
    line = f"{ONE_QUEUE}torchrun --nproc-per-node 8 {OVERLAPPED}{flags}"
    told = _rules_of(overlapkit, config, line, "--gpu", gpu)
    assert ("launch.one-queue-price" in told) is is_told
    assert told.get("launch.one-queue-price", "note") == "note"


SENDS = "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2"
EXPERTS = "--num-experts 8 --expert-model-parallel-size 4 --moe-token-dispatcher-type alltoall"


def test_a_launch_on_too_few_gpus_says_where_their_number_is_from(overlapkit, config) -> None:
    script = config(
        "#!/bin/bash\n#SBATCH --nodes=1 --ntasks-per-node=8\n"
        f"srun python {OVERLAPPED}--tensor-model-parallel-size 8 {SENDS}\n",
        "job.sbatch",
    )
    result = overlapkit("explain", "--from-megatron-lm", script, "--gpu", "h100")
    assert result.status == 2
    assert "it starts the job on 8 GPUs" in result.err and "or give --world-size N" in result.err
    given = overlapkit("explain", "--from-megatron-lm", script, "--world-size", "24")
    assert given.status == 2 and "--world-size 24: " in given.err


@pytest.mark.parametrize(
    ("flags", "gpus", "is_lost"),
    [
        (GRADIENTS, 8, True),
        (GRADIENTS, 1, False),
        ("", 8, False),
        (SENDS, 8, True),
        ("--pipeline-model-parallel-size 2", 8, False),
        (EXPERTS, 8, False),
        (
            f"{EXPERTS} --moe-shared-expert-intermediate-size 64 --moe-shared-expert-overlap",
            8,
            True,
        ),
    ],
)
def test_one_queue_is_a_finding_only_where_communication_is_set_to_overlap(
    flags: str, gpus: int, is_lost: bool, overlapkit: Any, config: Any
) -> None:
    line = f"{ONE_QUEUE}torchrun --nproc-per-node {gpus} {OVERLAPPED}{flags}"
    told = _rules_of(overlapkit, config, line, "--gpu", "h100")
    assert told.get("launch.env-one-queue") == ("refused" if is_lost else None)
    assert ("launch.env-differs" in told) or is_lost


@pytest.mark.parametrize(
    ("exported", "outcome"),
    [
        (f"{ONE_QUEUE}export TORCH_NCCL_ENABLE_TIMING=1\n", "refused"),
        (f"{ONE_QUEUE}export TORCH_NCCL_DESYNC_DEBUG=true\n", "refused"),
        ("export TORCH_NCCL_ENABLE_TIMING=1\n", None),
        (f"{ONE_QUEUE}export TORCH_NCCL_ENABLE_TIMING=0\n", None),
        ("export CUDA_DEVICE_MAX_CONNECTIONS=8\nexport TORCH_NCCL_ENABLE_TIMING=1\n", None),
        (ONE_QUEUE, None),
    ],
)
def test_the_timing_of_collectives(exported: str, outcome: str | None, overlapkit, config) -> None:
    flags = "--tensor-model-parallel-size 2 --sequence-parallel"
    line = f"{exported}torchrun --nproc-per-node 8 {OVERLAPPED}{flags}"
    told = _rules_of(overlapkit, config, line, "--gpu", "h100")
    assert told.get("launch.nccl-timing-one-queue") == outcome


@pytest.mark.parametrize(
    ("flags", "is_needed"),
    [
        (GRADIENTS, True),
        ("", False),
        (f"{GRADIENTS} --transformer-impl local", False),
        (f"{GRADIENTS} --tensor-model-parallel-size 8", False),
    ],
)
def test_norms_have_a_margin_only_beside_gradients(
    flags: str, is_needed: bool, overlapkit, config
) -> None:
    script = config(f"#!/bin/bash\ntorchrun --nproc-per-node 8 {OVERLAPPED}{flags}\n", "train.sh")
    result = overlapkit("explain", "--from-megatron-lm", script, "--json", "--gpu", "h100")
    assert ("NVTE_FWD_LAYERNORM_SM_MARGIN" in result.document["launch_env"]) is is_needed


@pytest.mark.parametrize(
    ("gpus", "flags", "found"),
    [
        (1, "--overlap-grad-reduce", False),
        (4, "--pipeline-model-parallel-size 4", False),
        (4, "--pipeline-model-parallel-size 4 --overlap-grad-reduce", False),
        (4, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2", True),
        (4, "--overlap-grad-reduce", True),
        (4, "", False),
        (4, "--num-experts 4 --expert-model-parallel-size 4", False),
    ],
)
def test_one_queue_is_a_finding_only_beside_overlap(
    gpus: int, flags: str, found: bool, overlapkit: Any, tmp_path: Path
) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        "export CUDA_DEVICE_MAX_CONNECTIONS=1\n"
        f"torchrun --nproc-per-node {gpus} pretrain_gpt.py {' '.join(arguments(''))} {flags}\n"
    )
    document = explained(overlapkit, str(script), "--gpu", "h100")
    assert (("launch.env-one-queue", "env.CUDA_DEVICE_MAX_CONNECTIONS") in findings(document)) == (
        found
    )


def test_sizes_that_a_pattern_of_layers_states_are_not_called_zero(
    overlapkit: Any, tmp_path: Path
) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        "torchrun --nproc-per-node 8 pretrain_hybrid.py --hybrid-layer-pattern MEME --bf16 "
        "--hidden-size 1024 --num-attention-heads 8 --seq-length 1024 --micro-batch-size 1 "
        "--max-position-embeddings 1024 --use-distributed-optimizer --overlap-grad-reduce\n"
    )
    result = overlapkit("explain", "--from-megatron-lm", str(script), "--gpu", "h100")
    assert "the number of buckets of this model is not known: --hybrid-layer-pattern" in result.out
    assert "=0 is not" not in result.out
