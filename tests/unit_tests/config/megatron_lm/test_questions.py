"""A script that ends before it starts a job: the variable that decides on that is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.errors import InputError, NoConfiguration

JOB = (
    "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 8 --hidden-size 64 --bf16 "
    "--tensor-model-parallel-size ${TP:-2}\n"
)


def asked(tmp_path: Path, text: str, **given: str) -> str:
    """The question that a script leads to."""
    script = tmp_path / "train.sh"
    script.write_text(text)
    with pytest.raises(InputError) as raised:
        read_megatron_lm(str(script), given)
    return str(raised.value)


def tp_of(tmp_path: Path, text: str, **given: str) -> int:
    """The tensor-parallel size that a script asks for."""
    script = tmp_path / "train.sh"
    script.write_text(text)
    size = read_megatron_lm(str(script), given).flat()["model.tensor_model_parallel_size"]
    assert isinstance(size, int)
    return size


ENDS = {
    "a value to fill in": (
        'export DATA=""\nif [[ -z "$DATA" ]]; then\n  echo "edit DATA"\n  exit 1\nfi\n',
        "DATA",
        "/data",
    ),
    "a dry run by default": (
        'DRY=${DRY:-1}\nARGS=(--num-layers 8)\nif [ "$DRY" -eq 1 ]; then\n  exit 0\nfi\n',
        "DRY",
        "0",
    ),
    "a list of two tests": ("RUN=no\n[ $RUN = yes ] || { echo off; exit 1; }\n", "RUN", "yes"),
    "the word of a case": (
        "MODE=help\ncase $MODE in\n  train) ;;\n  *)\n    exit 2\n    ;;\nesac\n",
        "MODE",
        "train",
    ),
    "an inner condition": (
        'NODES=1\nSTAGE=0\nif [ $NODES = 1 ]; then\n  if [ "$STAGE" = 0 ]; then exit; fi\nfi\n',
        "STAGE",
        "1",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_the_script_itself_sets_is_asked_for_where_it_ends_it(
    name: str, tmp_path: Path
) -> None:
    text, variable, value = ENDS[name]
    question = asked(tmp_path, text + JOB)
    assert re.search(rf"give {variable}=(value|{value}), which decides on that", question)
    assert tp_of(tmp_path, text + JOB, **{variable: value}) == 2


SIZES = """\
if [ "$SIZE" = small ]; then
    TP=2
elif [ "$SIZE" = large ]; then
    TP=8
else
    echo "unknown size"
    exit 1
fi
"""


def test_of_several_branches_none_is_chosen_for_the_user(tmp_path: Path) -> None:
    assert "give SIZE=small or large, which decides on that" in asked(tmp_path, SIZES + JOB)
    assert tp_of(tmp_path, SIZES + JOB, SIZE="small") == 2
    assert tp_of(tmp_path, SIZES + JOB, SIZE="large") == 8


def test_a_guard_of_several_tests_on_what_nothing_sets_is_passed(tmp_path: Path) -> None:
    guard = (
        'usage() {\n  echo "usage: $0 -t size -n nodes"\n  exit 1\n}\n'
        'while getopts "t:n:" option; do\n'
        '  case "$option" in\n    t) TP="$OPTARG" ;;\n    n) NODES="$OPTARG" ;;\n  esac\ndone\n'
        'if [ -z "$TP" ] || [ -z "$NODES" ]; then\n  usage\nfi\n'
    )
    assert "TP=value" in asked(tmp_path, guard + JOB.replace("${TP:-2}", "$TP"))
    assert tp_of(tmp_path, guard + JOB, TP="4") == 4


def test_arguments_that_were_not_asked_for_may_be_there_all_the_same(tmp_path: Path) -> None:
    guard = 'if [ "$#" -ne 3 ]; then\n  echo "three arguments"\n  exit 1\nfi\nTP=$2\n'
    assert "2=value" in asked(tmp_path, guard + JOB.replace("${TP:-2}", "$TP"))
    assert tp_of(tmp_path, guard + JOB, **{"2": "4"}) == 4


def test_a_return_that_ends_nothing_asks_for_what_nobody_gave(tmp_path: Path) -> None:
    choice = (
        "case $1 in\n  tensor)\n    TP=$2\n    ;;\n  *)\n    echo unknown\n    return 1\n"
        "    ;;\nesac\n"
    )
    assert "give 1=tensor, which decides on that" in asked(tmp_path, choice + JOB)
    assert tp_of(tmp_path, choice + JOB, **{"1": "tensor", "2": "4"}) == 4
    assert tp_of(tmp_path, choice + JOB, **{"1": "other"}) == 2


FLAGS = "--num-layers 8 --hidden-size 64 --bf16 --tensor-model-parallel-size"
NOT_REACHED = {
    "a case by a default": (
        'MODE=${1:-help}\ncase "$MODE" in\n  train)\n    ' + JOB + "    ;;\n"
        "  help)\n    echo usage\n    ;;\nesac\n",
        "MODE",
        "train",
    ),
    "a command that is only shown": (
        f"SHOW=${{SHOW:-1}}\nJOB=(torchrun pretrain_gpt.py {FLAGS} 2)\n"
        'if [[ "$SHOW" == 1 ]]; then\n  echo "${JOB[@]}"\nelse\n  "${JOB[@]}"\nfi\n',
        "SHOW",
        "0",
    ),
    "a function that nothing calls yet": (
        "go() {\n  torchrun pretrain_gpt.py " + FLAGS + ' 2\n}\nif [ "$1" = go ]; then\n  go\nfi\n',
        "1",
        "go",
    ),
    "a function by the script's arguments": (
        "go() {\n  torchrun pretrain_gpt.py " + FLAGS + ' 2\n}\n"$@"\n',
        "1",
        "go",
    ),
    "a list in a subshell": (
        "RUN=no\n[ $RUN = yes ] && (\n  cd /src\n  " + JOB + ")\necho done\n",
        "RUN",
        "yes",
    ),
    "a loop over what nothing sets": (
        "for size in $SIZES; do\n  torchrun pretrain_gpt.py " + FLAGS + " $size\ndone\n",
        "SIZES",
        "2",
    ),
}


@pytest.mark.parametrize("name", NOT_REACHED)
def test_a_job_that_is_not_reached_asks_for_what_decides(name: str, tmp_path: Path) -> None:
    text, variable, value = NOT_REACHED[name]
    assert re.search(rf"give it as {variable}=(value|{value})$", asked(tmp_path, text))
    assert tp_of(tmp_path, text, **{variable: value}) == 2


def test_a_script_of_another_program_is_still_called_that(tmp_path: Path) -> None:
    text = (
        'if [ "$MULTI" = 1 ]; then\n  torchrun train.py --lr 1e-4 --epochs 3\n'
        "else\n  python train.py --lr 1e-4 --epochs 3\nfi\n"
    )
    assert "starts no Megatron-LM job and sets no arguments for one" in asked(tmp_path, text)


def test_a_script_that_ends_by_itself_names_what_was_not_read(tmp_path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("TP=8\nsource ./settings.sh\nbash ./submit.sh\nexit 0\n")
    with pytest.raises(NoConfiguration, match=r"submit\.sh, which is not here; explain that"):
        read_megatron_lm(str(script))
    script.write_text("TP=8\n. ./settings.sh\n. ./submit.sh\nexit 0\n")
    with pytest.raises(NoConfiguration, match=r"submit\.sh .* is not read; give what it sets"):
        read_megatron_lm(str(script))


def test_a_file_of_arguments_need_not_have_those_that_others_depend_on(tmp_path) -> None:
    script = tmp_path / "args.sh"
    script.write_text(
        'EXTRA="--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 2"\n'
    )
    settings = read_megatron_lm(str(script))
    assert any("the number of chunks is not known" in note for note in settings.launch.notes)
    script.write_text(f"{script.read_text()}torchrun pretrain_gpt.py $EXTRA\n")
    with pytest.raises(InputError, match="needs --num-layers"):
        read_megatron_lm(str(script))


def test_defaults_that_a_missing_file_may_replace_are_named(tmp_path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        "A=${A:-1}\nsource ./cluster_env.sh\nTP=${TP:-2}\nPP=${PP:=1}\nE=${E:-}\n"
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 8 --hidden-size 64 "
        "--num-attention-heads 8 --tensor-model-parallel-size $TP "
        "--pipeline-model-parallel-size $PP\n"
    )
    settings = read_megatron_lm(str(script))
    assert (
        f"{script}: the defaults of TP and PP are taken: ./cluster_env.sh may set them, which is "
        "not read" in settings.launch.notes
    )
    given = read_megatron_lm(str(script), {"TP": "4", "PP": "2"})
    assert not any("defaults of" in note for note in given.launch.notes)


BRANCHES = {
    "a case": "case $SIZE in\n  7B|7b) TP=2 ;;\n  13B) TP=4 ;;\n  *) exit 1 ;;\nesac\n",
    "a case in one line": "case \"${SIZE:-}\" in 7B | 7b) TP=2;; '13B') TP=4;; *) exit;; esac\n",
    "tests": 'if [ "$SIZE" = 7B ]; then TP=2\nelif [[ $SIZE == 7b ]]; then TP=2\n'
    'elif test "${SIZE}" = "13B"; then TP=4\nelse exit 1\nfi\n',
    "a copy": 'S=$SIZE\nif [ "$S" = 7B ] || [ "$S" = 7b ]; then TP=2\n'
    'elif [ "$S" = 13B ]; then TP=4\nelse exit 1\nfi\n',
    "a function": "sizes() {\n  case $SIZE in\n    7B|7b) TP=2 ;;\n    13B) TP=4 ;;\n"
    "    *) exit 1 ;;\n  esac\n}\nsizes\n",
    "patterns and options are none": 'if [ "$SIZE" = --help ]; then echo help; fi\n'
    "case $SIZE in\n  7B|7b) TP=2 ;;\n  13B) TP=4 ;;\n  1?B*) TP=8 ;;\n  *) exit 1 ;;\nesac\n",
    "a value that ends the script is none": 'if [ "$SIZE" = none ]; then exit; fi\n'
    '[ "$SIZE" = help ] && exit\ncase $SIZE in\n  7B|7b) TP=2 ;;\n  13B) TP=4 ;;\n'
    "  test) exit 1 ;;\n  *) exit 1 ;;\nesac\n",
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_question_has_the_values_that_branches_name(name: str, tmp_path: Path) -> None:
    text = BRANCHES[name] + JOB
    assert "SIZE=7B, 7b or 13B" in asked(tmp_path, text)
    assert tp_of(tmp_path, text, SIZE="13B") == 4


def test_a_value_that_is_asked_for_has_the_values_that_a_case_names(tmp_path: Path) -> None:
    text = "case $MODEL in\n  small) TP=2 ;;\n  large) TP=8 ;;\nesac\n" + JOB
    question = asked(tmp_path, text.replace("${TP:-2}", "$TP"))
    assert question.endswith("give it as MODEL=small or large")


def test_many_values_are_named_up_to_eight(tmp_path: Path) -> None:
    items = "".join(f"  m{n}) TP={n} ;;\n" for n in range(1, 12))
    question = asked(tmp_path, f"case $M in\n{items}  *) exit 1 ;;\nesac\n{JOB}")
    assert "give M=m1, m2, m3, m4, m5, m6, m7, m8 or 3 more that it names, which" in question


WITH_OPTIONS_OF_ITS_OWN = """set -e
CHECKS="--lr-warmup-iters 2 --manual-gc-interval 10"
cd "$(dirname "$0")"
exec bash tools/bench.sh --nodes 4 --train-iters 20 \\
    pp=2 cp=2 ep=8 "extra=$CHECKS"
"""


def test_a_script_that_is_not_here_has_options_of_its_own(tmp_path: Path) -> None:
    told = asked(tmp_path, WITH_OPTIONS_OF_ITS_OWN)
    assert "starts no Megatron-LM job itself, but tools/bench.sh, which is not here" in told


@pytest.mark.parametrize(
    "start",
    [
        "srun ./bind.sh python pretrain_gpt.py --num-layers 8 --train-iters 20 {tp}",
        "bash ./bind.sh torchrun --nproc-per-node 8 $PROGRAM --num-layers 8 --train-iters 20 {tp}",
        "bash train_model.sh --num-layers 8 --train-iters 20 {tp}",
    ],
)
def test_a_script_that_is_not_here_may_hand_megatrons_flags_on(start: str, tmp_path: Path) -> None:
    text = f"PROGRAM=pretrain_gpt.py\n{start.format(tp='--tensor-model-parallel-size 2')}\n"
    assert tp_of(tmp_path, text) == 2


SEVERAL_ELSEWHERE = """set -euo pipefail
steps/collect.sh
steps/prepare.sh || true
for size in 7b 13b; do
  for repeat in 1 2; do
    steps/train.sh --size "$size" --repeat "$repeat" || true
  done
done
steps/report.sh
"""


def test_every_script_that_is_not_here_is_named(tmp_path: Path) -> None:
    told = asked(tmp_path, SEVERAL_ELSEWHERE)
    assert (
        "but steps/collect.sh, steps/prepare.sh, steps/train.sh, steps/report.sh, which are not "
        "here; explain the one that trains" in told
    )
    many = "".join(f"steps/{number}.sh\n" for number in range(11))
    assert "steps/7.sh and 3 more, which are not here" in asked(tmp_path, many)
