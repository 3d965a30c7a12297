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
