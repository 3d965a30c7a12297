"""What a script takes from outside: its arguments, lists of flags, and guards on both."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.config.run import Settings
from overlapkit.config.shell.follow import follow_script
from overlapkit.errors import InputError, NoConfiguration, SeveralLaunches

JOB = "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 2 --hidden-size 8 --bf16"
TP = "--tensor-model-parallel-size"


def notes_of(settings: Settings) -> str:
    assert settings.launch is not None
    return "\n".join(settings.launch.notes)


def written(tmp_path: Path, text: str) -> str:
    script = tmp_path / "train.sh"
    script.write_text(text)
    return str(script)


GUARDS = {
    "one of two is missing": 'if [ -z "$1" ] || [ -z "$2" ]; then\n  echo usage\n  exit 1\nfi',
    "an argument by its new name": 'SIZE=$1\nif [ -z "$SIZE" ]; then\n  exit 1\nfi',
    "too few": 'if [[ $# -lt 2 ]]; then\n  echo "usage: $0 SIZE DATA" >&2\n  exit 2\nfi',
    "of a function": 'usage() { echo "$0 SIZE"; exit 1; }\n[ $# -ge 1 ] && [ -n "$1" ] || usage',
}


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_on_arguments_is_passed(name: str, tmp_path: Path) -> None:
    script = written(tmp_path, f"set -e\n{GUARDS[name]}\n{JOB} {TP} 4\n")
    settings = read_megatron_lm(script)
    assert settings.flat()["model.tensor_model_parallel_size"] == 4
    assert "argument 1" in notes_of(settings)


CHOICES = {
    "elif": (
        'if [ "$SIZE" = 7b ]; then\n  TP=1\nelif [ "$SIZE" = 70b ]; then\n  TP=8\n'
        'else\n  echo "no such size"\n  exit 1\nfi'
    ),
    "case": "case $SIZE in\n  7b) TP=1 ;;\n  70b) TP=8 ;;\n  *)\n    exit 1\n    ;;\nesac",
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_selects_among_several_is_asked_for(name: str, tmp_path: Path) -> None:
    text = f"ENV=$1\nSIZE=$2\n{CHOICES[name]}\n{JOB} {TP} $TP\n"
    script = written(tmp_path, text)
    with pytest.raises(InputError, match=r"ends here.*give 2=7b or 70b, which decides on that"):
        read_megatron_lm(script)
    settings = read_megatron_lm(script, {"2": "70b"})
    assert settings.flat()["model.tensor_model_parallel_size"] == 8


def test_arguments_after_shift_are_asked_for_as_the_caller_counts(tmp_path: Path) -> None:
    script = written(tmp_path, f"set -e\nMODE=$1\nshift 2\nSIZE=$1\n{JOB} {TP} $SIZE\n")
    with pytest.raises(InputError, match="give it as 3=value"):
        read_megatron_lm(script)
    settings = read_megatron_lm(script, {"1": "train", "3": "4"})
    assert settings.flat()["model.tensor_model_parallel_size"] == 4


def test_a_loop_over_arguments_that_must_be_there_runs_once(tmp_path: Path) -> None:
    body = f'for size in "$@"; do\n  {JOB} {TP} "$size"\ndone\n'
    script = written(tmp_path, f"if [ $# -lt 1 ]; then exit 1; fi\n{body}")
    with pytest.raises(InputError, match="give it as 1=value"):
        read_megatron_lm(script)
    # Where none is needed, bash runs it for none.
    with pytest.raises(NoConfiguration):
        read_megatron_lm(written(tmp_path, f'SIZES="$*"\n{body}'))


@pytest.mark.parametrize("list_", ['"${MODEL[@]}"', "${MODEL[@]}", "$MODEL_ARGS"])
def test_a_list_of_flags_that_is_not_known_is_asked_for(list_: str, tmp_path: Path) -> None:
    """Also after a flag of a fork, which might take a value."""
    text = f"source models/small.sh\n{JOB} --flag-of-a-fork {list_} {TP} 2\n"
    script = written(tmp_path, text)
    name = "MODEL_ARGS" if "ARGS" in list_ else "MODEL"
    with pytest.raises(InputError, match=f"give it as {name}=value"):
        read_megatron_lm(script)
    given = {name: "--num-experts 8 --moe-router-topk 2"}
    assert read_megatron_lm(script, given).flat()["model.num_moe_experts"] == 8


def test_a_value_in_a_stray_word_is_not_asked_for(tmp_path: Path) -> None:
    """A folder with a blank in its name, and the date."""
    text = f"OUT='my runs/'$(date +%s)\n{JOB} --tensorboard-dir=$OUT {TP} 2\n"
    settings = read_megatron_lm(written(tmp_path, text))
    assert "'runs/' after --tensorboard-dir is not an argument" in notes_of(settings)


RESOLVED = {
    "readlink": 'HERE=$(dirname "$(readlink -f "$0")")',
    "realpath": 'HERE=$(dirname $(realpath "${BASH_SOURCE[0]}"))',
    "of a folder": 'HERE=$(realpath "$(dirname "$0")")',
}


@pytest.mark.parametrize("name", RESOLVED)
def test_the_scripts_folder_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "arguments.sh").write_text('MODEL_ARGS="--num-experts 4"\n')
    text = f'{RESOLVED[name]}\nsource "$HERE/conf/arguments.sh"\n{JOB} $MODEL_ARGS\n'
    script = Path(written(tmp_path, text))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert read_megatron_lm(f"../{script.name}").flat()["model.num_moe_experts"] == 4


def test_a_started_script_has_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "inner.sh").write_text(f"{JOB} --save runs/$(basename $0 .sh) {TP} $1\n")
    script = written(tmp_path, "bash inner.sh 2\n")
    [job] = follow_script("bash inner.sh 2\n", script, {}).started
    assert [word.text for word in job.words[-4:]] == ["--save", "runs/inner", TP, "2"]


def test_a_started_script_that_is_not_here_is_named(tmp_path: Path) -> None:
    script = written(tmp_path, "docker run --gpus all image bash /main/pretrain.sh\n")
    with pytest.raises(NoConfiguration, match=r"/main/pretrain.sh, which is not here"):
        read_megatron_lm(script)


@pytest.mark.parametrize("file", ["/usr/local/Ascend/ascend-toolkit/set_env.sh", "/etc/profile"])
def test_installed_files_set_no_arguments(file: str, tmp_path: Path) -> None:
    settings = read_megatron_lm(written(tmp_path, f"source {file}\n{JOB} $EXTRA\n"))
    assert settings.launch is not None and settings.launch.whole


BRANCHES = {
    "on one node": 'if [ "$RANK" == 0 ]; then\n  JOB\nelse\n  ray start --block\nfi',
    "in a function": (
        'train() {\n  JOB\n}\ncase "$RANK" in\n  0) train ;;\n  1) python eval.py ;;\nesac'
    ),
    "in a list": '[ "$RANK" = 0 ] && JOB',
    "of a program": "RANK=$(hostname)\ncase $RANK in\n  node-0) JOB ;;\nesac",
    "of the script itself": "RANK=1\nif [ $RANK = 0 ]; then\n  JOB\nfi",
}


@pytest.mark.parametrize("name", BRANCHES)
def test_what_decides_on_the_job_is_asked_for(name: str, tmp_path: Path) -> None:
    job = f"$LAUNCHER pretrain_gpt.py $ARGS {TP} 2"
    text = BRANCHES[name].replace("JOB", job)
    variables = 'LAUNCHER="torchrun --nproc-per-node 8"\nARGS="--num-layers 2 --bf16"\n'
    script = written(tmp_path, f"{variables}{text}\n")
    with pytest.raises(InputError, match=r"RANK decides whether the job is started here; .*RANK="):
        read_megatron_lm(script)
    given = {"RANK": "node-0" if "program" in name else "0"}
    settings = read_megatron_lm(script, given)
    assert settings.launch is not None and settings.launch.world_size == 8


def test_a_branch_of_another_program_is_not_asked_about(tmp_path: Path) -> None:
    text = 'if [ "$CLEAN" = 1 ]; then\n  python clean.py --depth 3\nfi\n'
    with pytest.raises(NoConfiguration):
        read_megatron_lm(written(tmp_path, text))


@pytest.mark.parametrize("starts", ["bash inner.sh", "source inner.sh"])
def test_jobs_of_another_file_are_selected_by_the_line_that_reads_it(
    starts: str, tmp_path: Path
) -> None:
    (tmp_path / "inner.sh").write_text(f'{JOB} "$@"\n')
    script = written(tmp_path, f"\n\n\n{starts} {TP} 2\n{starts} {TP} 4\n")
    with pytest.raises(SeveralLaunches, match=r"lines 4, 5\); select one, such as .*train.sh:4"):
        read_megatron_lm(script)
    for line, size in ((4, 2), (5, 4)):
        settings = read_megatron_lm(f"{script}:{line}")
        assert settings.flat()["model.tensor_model_parallel_size"] == size
    with pytest.raises(InputError, match="starts no Megatron-LM job; lines that do: 4, 5"):
        read_megatron_lm(f"{script}:1")


def test_numbers_are_read_as_python_reads_them(tmp_path: Path) -> None:
    script = written(tmp_path, f"STEPS=48_000\n{JOB} --train-iters $STEPS {TP} +2\n")
    assert read_megatron_lm(script).flat()["model.tensor_model_parallel_size"] == 2
    with pytest.raises(InputError, match="must be a whole number"):
        read_megatron_lm(written(tmp_path, f"{JOB} --train-iters 48__0 {TP} 2\n"))


def test_processes_of_msrun_are_counted(tmp_path: Path) -> None:
    text = f"msrun --worker_num 16 --local_worker_num=8 pretrain_gpt.py --num-layers 4 {TP} 4\n"
    launch = read_megatron_lm(written(tmp_path, text)).launch
    assert launch is not None and launch.world_size == 16
    assert launch.launcher is not None and launch.launcher.processes_per_node == 8
