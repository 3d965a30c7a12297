"""Launch scripts of several files, of no launch, with guards and with long lists."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.config.run import Launch, Settings
from overlapkit.errors import InputError

JOB = "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 2 --hidden-size 8 --bf16"


def launch_of(settings: Settings) -> Launch:
    assert settings.launch is not None
    return settings.launch


def test_arguments_by_number_may_have_holes(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        "TP=${1:-1}\nPP=${2:-1}\nM=$3\n"
        f"{JOB} --tensor-model-parallel-size $TP --pipeline-model-parallel-size $PP "
        "--micro-batch-size $M\n"
    )
    flat = read_megatron_lm(str(script), {"2": "4", "3": "2"}).flat()
    assert flat["model.tensor_model_parallel_size"] == 1
    assert flat["model.pipeline_model_parallel_size"] == 4
    assert flat["train.micro_batch_size"] == 2
    with pytest.raises(InputError, match="give it as 3=value"):
        read_megatron_lm(str(script), {"2": "4"})


@pytest.mark.parametrize("shell", ["sh -c", "bash -lc", "srun -l sh -c"])
def test_a_command_for_a_shell_that_has_only_an_unknown_list_of_arguments_is_asked_for(
    shell: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        'RUN="python -u ${CODE}/pretrain_gpt.py ${JOB_FLAGS}"\n'
        f'export CUDA_DEVICE_MAX_CONNECTIONS=1\n{shell} "$RUN"\n'
    )
    with pytest.raises(InputError, match="give it as JOB_FLAGS=value"):
        read_megatron_lm(str(script))
    flags = "--num-layers 2 --hidden-size 8 --tensor-model-parallel-size 2"
    flat = read_megatron_lm(str(script), {"JOB_FLAGS": flags}).flat()
    assert flat["model.tensor_model_parallel_size"] == 2


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("gpus_of_host --name $HOST_ADDRESS", "TP"),
        ("cat $HOSTS | awk '{n[$1]=$2} END {print n[\"'$HOST_ADDRESS'\"]}'", "TP"),
        ("expr $GPUS / 2", "GPUS"),
        ("basename $MODEL_DIR", "MODEL_DIR"),
    ],
)
def test_the_name_that_is_asked_for_decides_the_value(
    command: str, asked: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f"TP=$({command})\n{JOB} --tensor-model-parallel-size $TP\n")
    with pytest.raises(InputError, match=f"give it as {asked}=value"):
        read_megatron_lm(str(script))
    value = "8" if asked == "GPUS" else "4"
    flat = read_megatron_lm(str(script), {asked: value}).flat()
    assert flat["model.tensor_model_parallel_size"] == 4


FOLDERS = {
    "BASH_SOURCE": 'HERE="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" &>/dev/null && pwd)"',
    "$0": 'HERE=$(dirname "$0")',
    "the folder itself": "HERE=.",
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_beside_the_script_is_read(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    model = tmp_path / "lib" / "model.sh"
    model.write_text("# a model\nexport NCCL_DEBUG=INFO\nMODEL_ARGS=(\n  --num-experts 64\n)\n")
    script = tmp_path / "train.sh"
    script.write_text(f'{FOLDERS[folder]}\nsource "$HERE/lib/model.sh"\n{JOB} ${{MODEL_ARGS[@]}}\n')
    monkeypatch.chdir(tmp_path)
    settings = read_megatron_lm("train.sh")
    assert settings.flat()["model.num_moe_experts"] == 64
    place = settings.where["model.num_moe_experts"]
    assert (Path(place.file or "").resolve(), place.line) == (model, 4)
    assert launch_of(settings).environment["NCCL_DEBUG"] == "INFO"


def test_what_a_missing_file_may_set_is_asked_for(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f"source lib/model.sh\n{JOB} ${{MODEL_ARGS[@]}}\n")
    with pytest.raises(
        InputError, match=r"train.sh:2: .*MODEL_ARGS.*lib/model.sh.*MODEL_ARGS=value"
    ):
        read_megatron_lm(str(script))
    script.write_text(f"source lib/env.sh\n{JOB}\n")
    launch = launch_of(read_megatron_lm(str(script)))
    assert not launch.whole
    assert any("lib/env.sh is not read" in note for note in launch.notes)


def test_files_that_set_up_programs_hide_nothing(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f"source ~/.bashrc\nsource venv/bin/activate\n{JOB} $EXTRA\n")
    launch = launch_of(read_megatron_lm(str(script)))
    assert launch.whole
    assert not any("is not read" in note for note in launch.notes)


@pytest.mark.parametrize("name", ["/proc/self/environ", "/dev/zero", "loop.sh", "big.sh", "."])
def test_what_is_no_script_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop.sh").write_text("source loop.sh\n")
    (tmp_path / "big.sh").write_bytes(b"A=1\n" * 500_000)
    script = tmp_path / "train.sh"
    script.write_text(f"cd {tmp_path}\nsource {name}\n{JOB}\n")
    assert any("is not read" in n for n in launch_of(read_megatron_lm(str(script))).notes)


def test_exports_of_a_script_without_a_launch_count_and_absence_is_unknown(tmp_path: Path) -> None:
    script = tmp_path / "config.sh"
    script.write_text('export CUDA_DEVICE_MAX_CONNECTIONS=1\nARGS="--num-layers 2 --bf16"\n')
    settings = read_megatron_lm(str(script))
    launch = launch_of(settings)
    assert launch.environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert not launch.whole
    assert settings.where["env.CUDA_DEVICE_MAX_CONNECTIONS"].line == 1


GUARDS = {
    "if": 'if [[ -z $W ]]; then\n  echo "set W"\n  exit 1\nfi',
    "and": '[ -z "$W" ] && exit 1',
    "braces": '[ -n "$W" ] || { echo "set W"; exit 1; }',
    "a function": 'die() { echo "$1" >&2; exit 2; }\n[ -z "$W" ] && die "set W"',
    "submits itself": 'if [ -z "$W" ]; then sbatch "$0"; exit 0; fi',
    "else": 'if [ -n "$W" ]; then A=1; else usage; exit 1; fi',
}


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_on_what_nothing_sets_is_passed_with_a_note(name: str, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f"{GUARDS[name]}\n{JOB}\n")
    launch = launch_of(read_megatron_lm(str(script)))
    assert any("W is not set in the script: taken as set" in note for note in launch.notes)


@pytest.mark.parametrize(
    "guard", ["[ -d /data ] || exit 1", "if [ ! -f x ]; then exit 1; fi", "command -v x || exit 1"]
)
def test_a_guard_on_a_file_is_passed(guard: str, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f"{guard}\n{JOB}\n")
    assert launch_of(read_megatron_lm(str(script))).world_size == 8


def test_a_long_list_of_data_files_is_read(tmp_path: Path) -> None:
    rows = "".join(
        f'DATA="${{DATA}} {n * 7919} /data/corpus/train/part_{n:04d}.jsonl_text_document"\n'
        for n in range(3000)
    )
    script = tmp_path / "train.sh"
    script.write_text(f"{rows}{JOB} --data-path $DATA\n")
    began = time.process_time()
    assert read_megatron_lm(str(script)).flat()["model.num_layers"] == 2
    # Not a measure of speed: a reading that copies every former value takes minutes.
    assert time.process_time() - began < 20


def test_a_batch_script_that_is_written_keeps_its_inner_quotes(tmp_path: Path) -> None:
    """A heredoc with bash -c, whose text has eval "…" of exports before the launch."""
    script = tmp_path / "submit.sh"
    script.write_text(
        'NODES=2\nENVS="CUDA_DEVICE_MAX_CONNECTIONS=1 OMP_NUM_THREADS=4"\n'
        "ARGS=(--num-layers 2 --hidden-size 8 --bf16 --tensor-model-parallel-size 4)\n"
        'CMD="torchrun --nproc_per_node 4 --nnodes $NODES pretrain_gpt.py ${ARGS[@]}"\n'
        "cat > job.sbatch <<- EOM\n\t#!/bin/bash\n\t#SBATCH --nodes=$NODES\n"
        '\techo "\\$SLURM_JOB_NODELIST"\n'
        '\tsrun -l bash -c "\n\t\tcd /code\n\t\teval \\"$ENVS\\" $CMD\n\t"\n'
        "EOM\nsbatch job.sbatch\n"
    )
    settings = read_megatron_lm(str(script))
    assert settings.flat()["model.tensor_model_parallel_size"] == 4
    launch = launch_of(settings)
    assert launch.world_size == 8
    assert launch.environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert launch.environment["OMP_NUM_THREADS"] == "4"


ALL_UNKNOWN = {
    "of a missing file": (
        "source ./conf.sh\ntorchrun --nproc_per_node 8 pretrain_gpt.py "
        '"${MODEL_ARGS[@]}" ${TRAINING_ARGS[@]}\n',
        "t.sh:2: .*pretrain_gpt.py .*give it as MODEL_ARGS=value",
    ),
    "printed by a program": (
        "ARGS=$(python gen.py --out -)\npython -u -m torch.distributed.run --nproc_per_node 8 "
        "/code/Megatron-LM/train.py $ARGS\n",
        "train.py .*give it as ARGS=value",
    ),
}


@pytest.mark.parametrize("kind", ALL_UNKNOWN)
def test_arguments_that_are_all_unknown_are_asked_for(kind: str, tmp_path: Path) -> None:
    """The program trains Megatron-LM, so that to start no job would be wrong."""
    text, message = ALL_UNKNOWN[kind]
    (tmp_path / "t.sh").write_text(text)
    with pytest.raises(InputError, match=message):
        read_megatron_lm(str(tmp_path / "t.sh"))


DECIDED = {
    "if": (
        'if [ "$SIZE" = 7B ]; then\n  LAYERS=32\nelif [ "$SIZE" = 70B ]; then\n  LAYERS=80\nfi\n'
    ),
    "unquoted": (
        "if [ $SIZE = 7B ]; then\n  LAYERS=32\nelif [ $SIZE = 70B ]; then\n  LAYERS=80\nfi\n"
    ),
    "case": "case ${SIZE} in\n  7B) LAYERS=32 ;;\n  70B)\n    LAYERS=80\n    ;;\nesac\n",
    "list": "[[ $SIZE == 7B ]] && LAYERS=32\n[[ $SIZE == 70B ]] && LAYERS=80\n",
}


@pytest.mark.parametrize("kind", DECIDED)
def test_the_variable_that_decides_on_a_value_is_asked_for(kind: str, tmp_path: Path) -> None:
    """Not the one that the branches set, though that one can be given as well."""
    script = tmp_path / "train.sh"
    head = f"NODES=$1\nSIZE=$2\n{DECIDED[kind]}"
    script.write_text(
        f"{head}torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers $LAYERS --hidden-size 8\n"
    )
    with pytest.raises(
        InputError, match=r"2, .*it decides what LAYERS is.* give it as 2=7B or 70B"
    ):
        read_megatron_lm(str(script))
    assert read_megatron_lm(str(script), {"2": "70B"}).flat()["model.num_layers"] == 80
    assert read_megatron_lm(str(script), {"LAYERS": "4"}).flat()["model.num_layers"] == 4
    with pytest.raises(InputError, match="give it as LAYERS=value"):
        read_megatron_lm(str(script), {"2": "13B"})


def test_a_default_needs_no_variable_under_set_u(tmp_path: Path) -> None:
    """set -u ends a script for $A, and not for ${A:-1}, whatever the default is."""
    script = tmp_path / "train.sh"
    script.write_text(
        "set -euo pipefail\nROOT=${ROOT:-$(pwd)}\nTP=${TP:-2}\nOUT=${OUT:-$ROOT/out}\n"
        f"{JOB} --tensor-model-parallel-size $TP --save $OUT --seq-length ${{L-64}} ${{EXTRA:-}}\n"
    )
    settings = read_megatron_lm(str(script))
    assert settings.flat()["model.tensor_model_parallel_size"] == 2
    assert not [note for note in launch_of(settings).notes if "set -u" in note]


def test_a_function_that_starts_several_jobs_is_selected_by_its_calls(tmp_path: Path) -> None:
    script = tmp_path / "bench.sh"
    script.write_text(
        f'launch() {{\n  local name=$1\n  shift\n  {JOB} "$@" | tee $name.log\n}}\n'
        "launch one --tensor-model-parallel-size 1\n"
        "if ! launch two --tensor-model-parallel-size 2; then echo failed; fi\n"
    )
    with pytest.raises(InputError, match=r"2 times .*lines 6, 7\); select one, such as .*sh:6"):
        read_megatron_lm(str(script))
    for line, size in (6, 1), (7, 2):
        flat = read_megatron_lm(f"{script}:{line}").flat()
        assert flat["model.tensor_model_parallel_size"] == size
    with pytest.raises(InputError, match="lines 6, 7"):
        read_megatron_lm(f"{script}:4")


def test_a_function_that_is_given_all_arguments_has_the_scripts(tmp_path: Path) -> None:
    """What is not given of them is asked for by the script's number."""
    script = tmp_path / "train.sh"
    script.write_text(
        "setup() {\n  MBS=${1:-1}\n  LAYERS=${2}\n  shift 2\n  TP=$1\n}\n"
        'launch() { echo "$1"; '
        f'{JOB} --num-layers $LAYERS --tensor-model-parallel-size $TP --seq-length "$5"; }}\n'
        'setup $@\nlaunch now "$@"\n'
    )
    with pytest.raises(InputError, match="give it as 2=value"):
        read_megatron_lm(str(script))
    with pytest.raises(InputError, match="give it as 3=value"):
        read_megatron_lm(str(script), {"2": "4"})
    with pytest.raises(InputError, match="give it as 4=value"):
        read_megatron_lm(str(script), {"2": "4", "3": "2"})
    flat = read_megatron_lm(str(script), {"2": "4", "3": "2", "4": "64"}).flat()
    assert flat["model.num_layers"] == 4
    assert flat["model.tensor_model_parallel_size"] == 2
    assert flat["model.seq_length"] == 64


def test_no_variable_decides_how_a_job_ends(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        f"launch() {{\n  {JOB} --node-rank $NODE_ID --save ${{OUT:-out}}\n}}\n"
        "status=0\nif ! launch; then\n  status=1\nfi\nexit $status\n"
    )
    notes = launch_of(read_megatron_lm(str(script))).notes
    assert not [note for note in notes if "give NODE_ID" in note or "OUT=value" in note]
