"""Launch scripts of other launchers, over Megatron-LM's flags."""

from __future__ import annotations

import pytest

from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.errors import InputError

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
MODEL = (
    "--num-layers 8 --hidden-size 256 --num-attention-heads 8 --seq-length 128 --bf16 "
    "--tensor-model-parallel-size 2 --sequence-parallel --micro-batch-size 1"
)
AT_START = "lm.env-connections"


def submit(options: str, before: str = "") -> str:
    return (
        f"#!/bin/bash\n{before}ray job submit --address=http://127.0.0.1:8265 {options} "
        f"--working-dir . -- python3 train.py {MODEL}\n"
    )


LITERAL = '--runtime-env-json=\'{"env_vars": {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}}\''
VARIABLE = (
    'RUNTIME="{\n  \\"env_vars\\": {\n    \\"CUDA_DEVICE_MAX_CONNECTIONS\\": \\"1\\"\n  }\n}"\n'
)
LACKING = '--runtime-env-json \'{"env_vars": {"NCCL_DEBUG": "WARN"}}\''


@pytest.mark.parametrize(
    ("script", "found", "stops"),
    [
        (submit(LITERAL), "1", False),
        (submit('--runtime-env-json="${RUNTIME}"', VARIABLE), "1", False),
        (submit('--runtime-env-json "$RUNTIME"', VARIABLE), "1", False),
        (submit(LITERAL.replace('"1"', "1")), "1", False),
        (submit(LITERAL.replace('"1"', '"8"')), "8", True),
        (submit(LACKING), None, True),
        (submit(""), None, True),
        # A part that is not known could set anything that it is the name or the value of.
        (submit('--runtime-env-json="${GIVEN}"'), None, False),
        (submit('--runtime-env-json="{\\"env_vars\\": {${MORE}}}"'), None, False),
        (
            submit(f'--runtime-env-json="{{\\"env_vars\\": {{\\"{QUEUES}\\": \\"$N\\"}}}}"'),
            None,
            False,
        ),
        (submit('--runtime-env-json="{\\"env_vars\\": {\\"HOST\\": \\"$HOST\\"}}"'), None, True),
        (submit("--runtime-env there_is_no_such.yaml"), None, False),
        # The shell's variables are not the job's, unless ray was started from this shell.
        (submit(LACKING, f"export {QUEUES}=1\n"), None, False),
        (submit(LACKING, f"export {QUEUES}=1\nray start --head\n"), "1", False),
        (submit(LACKING, f"ray start --head\nexport {QUEUES}=1\n"), None, True),
        (submit(LITERAL, f"export {QUEUES}=8\nray start --head\n"), "1", False),
    ],
)
def test_the_environment_of_a_job_of_ray(script, found, stops, overlapkit, config) -> None:
    name = config(script, "run.sh")
    launch = read_megatron_lm(name).launch
    assert launch is not None and launch.environment.get(QUEUES) == found
    options = ("--world-size", "8", "--gpu", "h100", "--json")
    document = overlapkit("explain", "--from-megatron-lm", name, *options).document
    errors = {d["rule"] for d in document["decisions"] if d["outcome"] == "error"}
    assert (AT_START in errors) is stops


def test_where_ray_gets_a_variable(config) -> None:
    name = config(submit('--runtime-env-json="${RUNTIME}"', VARIABLE), "run.sh")
    assert str(read_megatron_lm(name).where[f"env.{QUEUES}"]) == f"{name}:4:7"


def test_a_file_of_the_runtime_environment(config, tmp_path) -> None:
    (tmp_path / "runtime.yaml").write_text(f"env_vars:\n  {QUEUES}: '1'\n")
    name = config(submit("--runtime-env=runtime.yaml"), "run.sh")
    launch = read_megatron_lm(name).launch
    assert launch is not None and launch.environment == {QUEUES: "1"} and launch.whole


SLIME = f"""#!/bin/bash
RAY='{{"env_vars": {{"{QUEUES}": "1"}}}}'
ray job submit --runtime-env-json="$RAY" -- python3 train.py \\
  --actor-num-nodes 2 --actor-num-gpus-per-node 8 --rollout-num-gpus 4 --colocate \\
  --rollout-batch-size 32 --sglang-mem-fraction-static 0.7 \\
  {MODEL.replace(" --bf16", "")} --overlap-grad-reduce
"""


def test_slime(overlapkit, config) -> None:
    name = config(SLIME, "run.sh")
    document = overlapkit("explain", "--from-megatron-lm", name, "--gpu", "h100", "--json").document
    assert document["world_size"] == 16
    assert document["effective"]["ddp.use_distributed_optimizer"] is True
    assert document["effective"]["ddp.overlap_grad_reduce"] is True
    assert any("this is slime's launch" in note for note in document["notes"])
    assert not any(
        "--colocate" in note and "Megatron-LM has no" in note for note in document["notes"]
    )
    # It sets variable lengths, and with them a dispatcher that has them.
    assert "core.variable-lengths-dispatcher" not in {d["rule"] for d in document["decisions"]}


def test_slime_sets_variables_of_the_training_alone(config) -> None:
    extra = f'--train-env-vars \'{{"{QUEUES}": "32"}}\' --colocate'
    name = config(SLIME.replace("--colocate", extra), "run.sh")
    launch = read_megatron_lm(name).launch
    assert launch is not None and launch.environment[QUEUES] == "32"


def test_a_misspelt_flag_of_megatron_lm_in_slimes_launch(config) -> None:
    name = config(SLIME.replace("--overlap-grad-reduce", "--overlap-grad-reduc"), "run.sh")
    with pytest.raises(InputError, match="did you mean --overlap-grad-reduce"):
        read_megatron_lm(name)


SWIFT = """#!/bin/bash
NPROC_PER_NODE=4 NNODES=2 \\
megatron {command} --model org/model --dataset 'my/data#100' --train_type full \\
  --tensor{s}model{s}parallel{s}size 2 --sequence{s}parallel true \\
  --overlap{s}grad{s}reduce true --overlap{s}param{s}gather {gather} --bf16 true
"""


@pytest.mark.parametrize("spelling", "-_")
@pytest.mark.parametrize(("command", "gather"), [("sft", True), ("pt", False), ("rlhf", True)])
def test_ms_swift(spelling, command, gather, overlapkit, config) -> None:
    text = SWIFT.format(s=spelling, command=command, gather=str(gather).lower())
    name = config(text, "run.sh")
    result = overlapkit("explain", "--from-megatron-lm", name, "--gpu", "h100", "--json")
    effective = result.document["effective"]
    assert result.status == 0 and result.document["world_size"] == 8
    assert effective["model.tensor_model_parallel_size"] == 2
    assert effective["model.sequence_parallel"] is True
    assert effective["ddp.overlap_grad_reduce"] is True
    assert effective["ddp.overlap_param_gather"] is gather
    # Its own default, and the variable that it sets itself.
    assert effective["ddp.use_distributed_optimizer"] is True
    assert result.document["job_env"][QUEUES]["value"] == "1"
    text = overlapkit("explain", "--from-megatron-lm", name, "--gpu", "h100").out
    assert "this is ms-swift's launch" in text
    assert "Everything that was requested is in effect" not in text


def test_where_a_flag_of_ms_swift_is(config) -> None:
    name = config(SWIFT.format(s="_", command="sft", gather="true"), "run.sh")
    where = read_megatron_lm(name).where
    assert str(where["model.tensor_model_parallel_size"]) == f"{name}:4:3"


@pytest.mark.parametrize(("flag", "meant"), [("--overlap_grad_reduc", "--overlap_grad_reduce")])
def test_a_misspelt_flag_of_ms_swift(flag: str, meant: str, config) -> None:
    name = config(f"megatron sft --model a {flag} true --dataset b\n", "run.sh")
    with pytest.raises(InputError, match=f"did you mean {meant}"):
        read_megatron_lm(name)


def test_ms_swift_with_experts_of_unknown_number(overlapkit, config) -> None:
    flags = "--expert_model_parallel_size 4 --moe_shared_expert_overlap true"
    name = config(f"NPROC_PER_NODE=8 megatron sft --model a {flags}\n", "run.sh")
    document = overlapkit("explain", "--from-megatron-lm", name, "--gpu", "h100", "--json").document
    assert not any("num_moe_experts" in d["reason"] for d in document["decisions"])


DEEPSPEED = f"deepspeed --num_gpus 8 pretrain_gpt.py {MODEL} --deepspeed --deepspeed_config ds.json"


@pytest.mark.parametrize(
    ("zero", "said"),
    [
        (None, "stage, overlap_comm, reduce_bucket_size"),
        (
            '{"stage": 2, "overlap_comm": true, "reduce_bucket_size": 5}',
            "stage 2, overlap_comm true",
        ),
        ('{"stage": 1}', "stage 1, overlap_comm false"),
        ('{"stage": 3}', "stage 3, overlap_comm true"),
    ],
)
def test_megatron_deepspeed(zero, said, overlapkit, config, tmp_path) -> None:
    if zero is not None:
        (tmp_path / "ds.json").write_text(f'{{"zero_optimization": {zero}}}')
    name = config(f"#!/bin/bash\n{DEEPSPEED}\n", "run.sh")
    result = overlapkit("explain", "--from-megatron-lm", name, "--gpu", "h100")
    assert result.status == 2 and result.err.count("\n") == 1
    assert f"{name}:2: this is Megatron-DeepSpeed" in result.err and said in result.err


def test_what_a_launcher_sets_by_itself_is_not_said_of_the_script(overlapkit, config) -> None:
    flags = "--overlap_grad_reduce true --overlap_param_gather true"
    name = config(f"NPROC_PER_NODE=8 megatron sft --model a {flags}\n", "run.sh")
    document = overlapkit("explain", "--from-megatron-lm", name, "--gpu", "h100", "--json").document
    (found,) = [d for d in document["decisions"] if d["rule"] == "launch.env-one-queue"]
    assert found["reason"].startswith("ms-swift's megatron_args.py sets")


def test_ms_swifts_command_after_the_dashes(overlapkit) -> None:
    words = "megatron sft --model a --tensor_model_parallel_size 2 --overlap_grad_reduce true"
    options = ("--from-megatron-lm", "--gpu", "h100", "--json")
    result = overlapkit("explain", *options, "--world-size", "8", "--", *words.split())
    assert result.document["effective"]["model.tensor_model_parallel_size"] == 2
    assert any("this is ms-swift's" in note for note in result.document["notes"])
    result = overlapkit("explain", *options, "--", *words.split())
    assert result.status == 2 and "--world-size N is missing" in result.err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("accelerate launch --config_file a.yaml train.py", "accelerate"),
        ("NPROC_PER_NODE=8 swift sft --model a --deepspeed zero2", "ms-swift without Megatron"),
        ("ray job submit -- python3 -m openrlhf.cli.train_ppo_ray --zero_stage 3", "OpenRLHF"),
        ("torchrun --nproc-per-node 8 -m torchtitan.train --job.config_file a.toml", "torchtitan"),
    ],
)
def test_a_script_of_a_program_without_megatron(command: str, said: str, config) -> None:
    with pytest.raises(InputError, match=f":2: this starts .*{said}"):
        read_megatron_lm(config(f"#!/bin/bash\n{command}\n", "run.sh"))
