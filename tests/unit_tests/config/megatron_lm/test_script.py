"""Megatron-LM's launch scripts and arguments, read into settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlapkit.config.megatron_lm.flags import FLAGS
from overlapkit.config.megatron_lm.script import read_megatron_lm, read_megatron_lm_arguments
from overlapkit.config.run import Launch, Settings
from overlapkit.config.schema import section_fields
from overlapkit.errors import InputError
from support.megatron_lm_cases import arguments

SCRIPTS = Path(__file__).parents[3] / "data" / "megatron_lm"
TP = "--tensor-model-parallel-size"


def launch_of(settings: Settings) -> Launch:
    assert settings.framework == "megatron-lm" and settings.launch is not None
    return settings.launch


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """`script(text)`: a launch script with this text, by its name."""

    def write(text: str, name: str = "train.sh") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# What each script says: some of its settings, the GPUs, CUDA_DEVICE_MAX_CONNECTIONS as exported.
SCRIPTS_SAY: dict[str, tuple[dict[str, Any], int, str]] = {
    "gpt3_175b_array": (
        {
            "model.num_layers": 96,
            "model.tensor_model_parallel_size": 8,
            "model.pipeline_model_parallel_size": 16,
            "model.sequence_parallel": True,
            "ddp.overlap_param_gather": True,
            "optimizer.use_distributed_optimizer": True,
            "train.global_batch_size": 1536,
            "model.bf16": True,
        },
        128,
        "1",
    ),
    "llama3_8b_string": (
        {
            "model.tensor_model_parallel_size": 1,
            "model.num_query_groups": 8,
            "model.ffn_hidden_size": 14336,
            "model.seq_length": 8192,
            "train.micro_batch_size": 1,
            "ddp.overlap_grad_reduce": True,
        },
        8,
        "1",
    ),
    "llama3_70b_slurm": (
        {
            "model.tensor_model_parallel_size": 4,
            "model.pipeline_model_parallel_size": 4,
            "model.virtual_pipeline_model_parallel_size": 4,
            "model.context_parallel_size": 2,
            "model.tp_comm_overlap": True,
            "model.gated_linear_unit": True,
            "model.share_embeddings_and_output_weights": False,
        },
        64,
        "1",
    ),
    "mixtral_8x7b_moe": (
        {
            "model.num_moe_experts": 8,
            "model.expert_model_parallel_size": 8,
            "model.expert_tensor_parallel_size": 1,
            "model.virtual_pipeline_model_parallel_size": 2,
            "model.overlap_moe_expert_parallel_comm": True,
            "model.delay_wgrad_compute": True,
            "ddp.delay_wgrad_compute": True,
            "train.micro_batch_size": 1,
        },
        64,
        "32",
    ),
    "llama3_8b_fsdp": (
        {
            "ddp.use_megatron_fsdp": True,
            "ddp.data_parallel_sharding_strategy": "optim_grads_params",
            "model.gradient_accumulation_fusion": False,
            "megatron_lm.ckpt_format": "fsdp_dtensor",
        },
        16,
        "1",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS_SAY)
def test_a_script_says(name: str) -> None:
    path = SCRIPTS / f"{name}.sh"
    said, world_size, connections = SCRIPTS_SAY[name]
    settings = read_megatron_lm(str(path))
    flat = settings.flat()
    assert {key: flat.get(key) for key in said} == said
    assert set(said) - {"model.tensor_model_parallel_size"} <= settings.asked
    launch = launch_of(settings)
    assert launch.world_size == world_size
    assert launch.environment["CUDA_DEVICE_MAX_CONNECTIONS"] == connections
    lines = path.read_text().splitlines()
    for key in settings.asked:
        place = settings.where[key]
        assert place.file == str(path)
        assert place.line is not None and place.column is not None
        flag = re.match(r"[-\w]+", lines[place.line - 1][place.column - 1 :])
        assert flag is not None and flag[0] in FLAGS, (key, flag)
    exported = settings.where["env.CUDA_DEVICE_MAX_CONNECTIONS"]
    assert exported.line is not None and exported.column is not None
    assert lines[exported.line - 1][exported.column - 1 :].startswith("CUDA_DEVICE_MAX_CONN")


def test_values_of_variables_are_the_callers() -> None:
    path = str(SCRIPTS / "llama3_8b_string.sh")
    settings = read_megatron_lm(path, {"TP": "2", "MAX_LEN": "4096"})
    flat = settings.flat()
    assert flat["model.tensor_model_parallel_size"] == 2
    assert flat["model.sequence_parallel"] is True and flat["model.tp_comm_overlap"] is True
    assert flat["model.seq_length"] == 4096


def test_a_launch_that_is_not_known_asks_for_its_variable() -> None:
    path = SCRIPTS / "mistakes.sh"
    launch = launch_of(read_megatron_lm(str(path)))
    assert launch.world_size is None
    assert f"{path}:3:" in launch.world_size_unknown and "GPUS=value" in launch.world_size_unknown
    assert launch_of(read_megatron_lm(str(path), {"GPUS": "8"})).world_size == 32


def test_two_launches_ask_which() -> None:
    path = str(SCRIPTS / "two_launches.sh")
    with pytest.raises(InputError, match=r"2 times .*lines 6, 7.*two_launches\.sh:6"):
        read_megatron_lm(path)
    first, second = (read_megatron_lm(f"{path}:{line}") for line in (6, 7))
    assert launch_of(first).world_size == 8 and launch_of(second).world_size == 32
    assert "ddp.overlap_grad_reduce" not in first.asked
    assert "ddp.overlap_grad_reduce" in second.asked
    with pytest.raises(InputError, match=r"two_launches\.sh:5: starts no .* lines that do: 6, 7"):
        read_megatron_lm(f"{path}:5")


def test_two_launches_alike_are_one(script: Any) -> None:
    line = f"torchrun --nproc_per_node 8 pretrain_gpt.py {' '.join(arguments(''))}\n"
    settings = read_megatron_lm(script(f"{line}sleep 10\n{line}"))
    assert launch_of(settings).world_size == 8


LAUNCHERS = {
    "torchrun --nproc_per_node 8 --nnodes 4": 32,
    "torchrun --nproc-per-node=4 --nnodes=2 --rdzv_backend c10d": 8,
    "torchrun --standalone --nproc_per_node=2": 2,
    "/opt/venv/bin/torchrun --nnodes 3 --nproc_per_node 1": 3,
    "python -m torch.distributed.run --nproc_per_node 8": 8,
    "python -m torch.distributed.launch --nproc_per_node 8 --nnodes 2": 16,
    "srun -N 4 --ntasks-per-node=8 python -u": 32,
    "srun -n 16 python": 16,
    "srun -n16 python": 16,
    "srun --ntasks 24 --ntasks-per-node 8 python": 24,
    "srun --nodes=2 torchrun --nnodes 2 --nproc_per_node 8": 16,
    "mpirun -np 64 -x PATH python": 64,
    "deepspeed --num_gpus 8 --num_nodes 2": 16,
    "nsys profile -o x torchrun --nproc_per_node 8": 8,
    "exec env A=1 torchrun --nproc_per_node 8": 8,
    "export WORLD_SIZE=4; python": 4,
    "python": None,
    "torchrun --nproc_per_node gpu": None,
    "torchrun --nnodes 1:4 --nproc_per_node 8": None,
    "torchrun --nnodes $N --nproc_per_node 8": None,
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_how_many_gpus_a_launcher_starts(launcher: str, script: Any) -> None:
    line = f"{launcher} pretrain_gpt.py {' '.join(arguments(''))}"
    launch = launch_of(read_megatron_lm(script(line)))
    assert launch.world_size == LAUNCHERS[launcher]
    assert (launch.world_size is None) == bool(launch.world_size_unknown)


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ("bash -c '", "'"),
        ('srun --ntasks=4 bash -lc "', '"'),
        ('CMD="', '"\n$CMD'),
        ('CMD="', '"\neval $CMD'),
        ('CMD="', '"\nsrun bash -c "$CMD"'),
        ("run() { ", "; }\nrun"),
        ("(", ") &\nwait"),
        ("if true; then ", "; fi"),
        ("for host in a b; do ssh $host '", "'; done"),
        ("docker run --rm -e A=1 image ", ""),
        ("nohup ", " > log 2>&1 &"),
        ("time ", " || exit 1"),
        ("cd x && ", ""),
        ("! ", ""),
        ("timeout 1h ", ""),
        ("sbatch <<EOF\n#!/bin/bash\n", "\nEOF"),
        ("cat > job.sh <<'EOF'\n", "\nEOF\nsbatch job.sh"),
        ("cat <<EOF | tee job.sh | cat\nusage\nEOF\nbash -s <<-EOF\n", "\nEOF"),
        ('sbatch --nodes 1 --wrap="', '"'),
    ],
)
def test_where_a_launch_may_stand(head: str, tail: str, script: Any) -> None:
    line = f"torchrun --nproc_per_node 8 pretrain_gpt.py {' '.join(arguments(TP + ' 2'))}"
    settings = read_megatron_lm(script(f"{head}{line}{tail}\n"))
    assert settings.flat()["model.tensor_model_parallel_size"] == 2
    assert launch_of(settings).world_size == 8


def test_a_batch_script_in_a_heredoc_tells_its_size(script: Any) -> None:
    text = """NODES=4; TP=2
sbatch --ntasks-per-node=8 <<EOF
#!/bin/bash
#SBATCH --nodes=$NODES
export CUDA_DEVICE_MAX_CONNECTIONS=1
A=8
srun python pretrain_gpt.py --num-layers \\$A --tensor-model-parallel-size $TP --bf16
EOF
"""
    settings = read_megatron_lm(script(text))
    assert launch_of(settings).world_size == 32
    assert launch_of(settings).environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert settings.flat()["model.num_layers"] == 8
    assert settings.flat()["model.tensor_model_parallel_size"] == 2


def test_a_command_that_is_only_shown_is_no_launch(script: Any) -> None:
    job = f"torchrun --nproc_per_node 8 pretrain_gpt.py {' '.join(arguments(''))}"
    text = f"""cat <<EOF
usage: torchrun pretrain_gpt.py --num-layers 4 --hidden-size 8 --num-attention-heads 2
EOF
echo {job}
CUDA_DEVICE_MAX_CONNECTIONS=1 {job}
"""
    launch = launch_of(read_megatron_lm(script(text)))
    assert launch.environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


@pytest.mark.parametrize(
    ("before", "launcher", "seen"),
    [
        ("export CUDA_DEVICE_MAX_CONNECTIONS=1", "torchrun", "1"),
        ("", "CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun", "1"),
        ("", "env CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun", "1"),
        ("", "srun --export=ALL,CUDA_DEVICE_MAX_CONNECTIONS=1 python", "1"),
        ("", "mpirun -np 8 -x CUDA_DEVICE_MAX_CONNECTIONS=1 python", "1"),
        ("", "docker run -e CUDA_DEVICE_MAX_CONNECTIONS=1 image torchrun", "1"),
        ("", "docker run --env=CUDA_DEVICE_MAX_CONNECTIONS=1 image torchrun", "1"),
        ("CUDA_DEVICE_MAX_CONNECTIONS=1", "torchrun", None),
        ("export CUDA_DEVICE_MAX_CONNECTIONS=1\nunset CUDA_DEVICE_MAX_CONNECTIONS", "python", None),
    ],
)
def test_which_environment_the_job_gets(
    before: str, launcher: str, seen: str | None, script: Any
) -> None:
    path = script(f"{before}\n{launcher} pretrain_gpt.py {' '.join(arguments(''))}")
    launch = launch_of(read_megatron_lm(path))
    assert launch.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == seen
    hidden = before.startswith("CUDA")
    assert any("is not exported" in note for note in launch.notes) == hidden


def test_arguments_alone_in_variables_are_taken(script: Any) -> None:
    settings = read_megatron_lm(script(f"A=({TP} 2 --num-layers 4)\nB='--bf16 --hidden-size 8'\n"))
    flat = settings.flat()
    assert (flat["model.num_layers"], flat["model.hidden_size"]) == (4, 8)
    assert any("starts no job" in note for note in launch_of(settings).notes)


REFUSED = {
    "a variable": (f"torchrun x.py {TP} $TP", [":1:", TP, "TP=value", "not set"]),
    "a variable behind =": (f"torchrun x.py {TP}=$TP", [":1:", TP, "TP=value"]),
    "a variable of a variable": (f"A=$B\ntorchrun x.py {TP} $A", [":2:", "B=value"]),
    "a counted variable": (f"A=$((N * 8))\ntorchrun x.py {TP} $A", ["N=value"]),
    "a command": (f"torchrun x.py {TP} $(nproc)", [":1:", "'nproc'", "not run"]),
    "a command in a variable": (f"A=$(nproc)\ntorchrun x.py {TP} $A", ["A=value", "'nproc'"]),
    "a positional": (f"torchrun x.py {TP} $1", ["1=value"]),
    "no value": (f"torchrun x.py {TP}", [":1:", TP, "needs a value"]),
    "no value before a flag": (f"torchrun x.py {TP} --bf16", [TP, "needs a value"]),
    "an empty value": (f'A=\ntorchrun x.py {TP} "$A"', [TP, "needs a value"]),
    "no number": (f"torchrun x.py {TP} two", [":1:", TP, "two", "whole number"]),
    "a float": (f"torchrun x.py {TP} 2.0", ["2.0", "whole number"]),
    "zero": (f"torchrun x.py {TP} 0", [":1:", "tensor_model_parallel_size must be 1 or more"]),
    "a huge number": (f"torchrun x.py {TP} {10**12}", ["or less"]),
    "a switch with a value": ("torchrun x.py --num-layers 2 --bf16 True", ["--bf16", "switch"]),
    "a misspelt flag": (
        "torchrun x.py --num-layers 2 \\\n --overlap-grad-reduec",
        [":2:", "--overlap-grad-reduec", "did you mean --overlap-grad-reduce?", "--allow-unknown"],
    ),
    "a yaml": ("torchrun x.py --num-layers 2 --yaml-cfg run.yaml", ["--yaml-cfg", "as flags"]),
    "two sizes of chunks": (
        "torchrun x.py --num-layers 8 --pipeline-model-parallel-size 2 "
        "--num-layers-per-virtual-pipeline-stage 1 --num-virtual-stages-per-pipeline-rank 2",
        ["--num-layers-per-virtual-pipeline-stage", "exclude each other"],
    ),
    "both halves": ("torchrun x.py --num-layers 8 --bf16 --fp16", ["exclude each other"]),
    "a layer pattern": (
        "torchrun x.py --num-layers 8 --moe-layer-freq 'open(1)'",
        ["--moe-layer-freq", "lists of 0 and 1"],
    ),
    "no job": ("echo hello", ["starts no Megatron-LM job"]),
    "nothing": ("", ["starts no Megatron-LM job"]),
    "an unknown export": (
        "export CUDA_DEVICE_MAX_CONNECTIONS=$X\ntorchrun x.py --num-layers 2 --bf16 --swiglu",
        ["CUDA_DEVICE_MAX_CONNECTIONS", "X=value"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_place_and_remedy(name: str, script: Any) -> None:
    text, words = REFUSED[name]
    with pytest.raises(InputError) as error:
        read_megatron_lm(script(text))
    assert "train.sh" in str(error.value) or "--" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_script_that_ends_before_its_job_asks_what_decides(script: Any) -> None:
    job = f"torchrun pretrain_gpt.py {' '.join(arguments(''))}"
    path = script(f"case $SIZE in\n7b) L=1;;\n*) echo unknown; exit 1;;\nesac\n{job}\n")
    with pytest.raises(InputError, match=r"train.sh:3: .*give SIZE=7b,"):
        read_megatron_lm(path)
    assert read_megatron_lm(path, {"SIZE": "7b"}).framework == "megatron-lm"


@pytest.mark.parametrize(
    "held", ["declare -A L=([7b]=1 [13b]=2)", "declare -A L; L[7b]=1; L[13b]=2"]
)
def test_an_array_by_keys_is_read_and_asks_for_its_key(held: str, script: Any) -> None:
    job = "torchrun pretrain_gpt.py --hidden-size 8 --bf16 --num-layers ${L[$SIZE]}"
    path = script(f"SIZE=13b\n{held}\n{job}\n")
    assert read_megatron_lm(path).flat()["model.num_layers"] == 2
    path = script(f"SIZE=$(choose)\n{held}\n{job}\n")
    with pytest.raises(InputError, match="give it as SIZE=value"):
        read_megatron_lm(path)


def test_what_no_script_can_be_is_refused(tmp_path: Path) -> None:
    big, binary = tmp_path / "big.sh", tmp_path / "binary.sh"
    big.write_bytes(b"A=1\n" * 2_000_000)
    binary.write_bytes(b"\x7fELF\0\0\0")
    for path, told in ((big, "larger than"), (binary, "binary"), (tmp_path, "folder")):
        with pytest.raises(InputError, match=told):
            read_megatron_lm(str(path))
    with pytest.raises(InputError, match="no such file"):
        read_megatron_lm(str(tmp_path / "none.sh"))
    with pytest.raises(InputError, match="not the name of a shell variable"):
        read_megatron_lm(str(SCRIPTS / "mistakes.sh"), {"a-b": "1"})


def test_unknown_flags_and_values_that_do_not_matter_are_ignored() -> None:
    words = arguments("--data-path a b 0.3 --lr 1e-4 --clip-grad 1.0 --made-up x --log-interval 1")
    assert (
        read_megatron_lm_arguments(words).values == read_megatron_lm_arguments(arguments("")).values
    )


def test_the_last_of_a_flag_counts() -> None:
    settings = read_megatron_lm_arguments(arguments(f"{TP} 2 {TP}=4"))
    assert settings.flat()["model.tensor_model_parallel_size"] == 4
    assert any("again" in note for note in launch_of(settings).notes)


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--num-layers-per-virtual-pipeline-stage 2", "virtual_pipeline_model_parallel_size", 2),
        ("--num-virtual-stages-per-pipeline-rank 4", "virtual_pipeline_model_parallel_size", 4),
        ("--swiglu", "ffn_hidden_size", int(256 * 4 * 2 / 3 / 64) * 64),
        ("--swiglu --ffn-hidden-size 700", "ffn_hidden_size", 700),
        ("--num-query-groups 2", "num_query_groups", None),
        ("--group-query-attention --num-query-groups 2", "num_query_groups", 2),
        ("--group-query-attention", "num_query_groups", 1),
        ("--recompute-activations", "recompute_granularity", "selective"),
        ("--moe-layer-freq ([0]*3+[1]*2)", "moe_layer_freq", [0, 0, 0, 1, 1]),
        ("--moe-layer-freq 2", "moe_layer_freq", 2),
        ("--moe-layer-freq -1", "moe_layer_freq", -1),
        ("--recompute-modules mlp moe", "recompute_modules", ["mlp", "moe"]),
        ("--cp-comm-type p2p", "cp_comm_type", "p2p"),
        ("--no-gradient-accumulation-fusion", "gradient_accumulation_fusion", False),
        ("", "gradient_accumulation_fusion", True),
        ("--disable-bias-linear", "add_bias_linear", False),
        ("--tp-comm-overlap-cfg /no/such/file.yaml", "tp_comm_overlap_cfg", "/no/such/file.yaml"),
    ],
)
def test_what_flags_mean_together(flags: str, key: str, value: Any) -> None:
    words = arguments("--pipeline-model-parallel-size 4 " + flags)
    model = read_megatron_lm_arguments(words).values["model"] or {}
    assert model.get(key) == value


def test_a_userbuffers_file_beside_the_script_is_read(script: Any) -> None:
    script("proj_fprop:\n  method: pipelin\n", "ub.yaml")
    line = f"torchrun x.py {' '.join(arguments('--tp-comm-overlap-cfg ub.yaml'))}"
    model = read_megatron_lm(script(line)).values["model"] or {}
    assert model["tp_comm_overlap_cfg"] == {"proj_fprop": {"method": "pipelin"}}


def test_overrides_come_on_top() -> None:
    settings = read_megatron_lm_arguments(
        arguments(""), overrides=["model.tensor_model_parallel_size=8", "megatron_lm.ckpt_format=x"]
    )
    assert settings.flat()["model.tensor_model_parallel_size"] == 8
    assert "megatron_lm.ckpt_format" in settings.asked
    with pytest.raises(InputError, match="Megatron-LM has no comm_overlap"):
        read_megatron_lm_arguments(arguments(""), overrides=["comm_overlap.tp_comm_overlap=true"])


def test_another_number_of_gpus_is_noted() -> None:
    path = str(SCRIPTS / "gpt3_175b_array.sh")
    assert not launch_of(read_megatron_lm(path, world_size=128)).notes
    (note,) = launch_of(read_megatron_lm(path, world_size=64)).notes
    assert "128" in note and "64" in note


def test_every_key_of_the_table_exists() -> None:
    for name, flag in FLAGS.items():
        for key in flag.keys:
            section, _, field = key.partition(".")
            assert field in section_fields(section), name


@given(st.lists(st.sampled_from([*FLAGS, "1", "2", "x", "=", "", "--", "--made-up"]), max_size=8))
def test_any_arguments_are_read_or_refused(words: list[str]) -> None:
    try:
        settings = read_megatron_lm_arguments(words)
    except InputError as error:
        assert str(error)
    else:
        assert settings.framework == "megatron-lm"
