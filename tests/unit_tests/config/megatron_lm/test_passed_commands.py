"""Commands that a launch line hands to a shell as text, with variables that this shell expands."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.errors import InputError


def tp_of(tmp_path: Path, text: str, **given: str) -> object:
    """The tensor-parallel size that a script asks for."""
    script = tmp_path / "train.sh"
    script.write_text(text)
    return read_megatron_lm(str(script), given).flat()["model.tensor_model_parallel_size"]


PASSED = {
    "variables alone": (
        "export ARGS='--num-layers 8 --hidden-size 64 --tensor-model-parallel-size 4'\n"
        "srun bash -c 'torchrun --nproc-per-node=8 pretrain_gpt.py $ARGS'\n"
    ),
    "the whole command": (
        "export LAUNCH='torchrun --nproc-per-node 8 pretrain_gpt.py'\n"
        "export ARGS='--num-layers 8 --hidden-size 64 --tensor-model-parallel-size 4'\n"
        "srun -l bash -lc '$LAUNCH $ARGS'\n"
    ),
    "arrays that it sets itself": (
        'srun bash -c "\n  ARGS=(--num-layers 8 --hidden-size 64 --tensor-model-parallel-size 4)\n'
        '  torchrun \\"\\${NODES[@]}\\" pretrain_gpt.py \\"\\${ARGS[@]}\\"\n"\n'
    ),
}


@pytest.mark.parametrize("name", PASSED)
def test_a_shell_expands_the_variables_of_commands_that_it_is_given(
    name: str, tmp_path: Path
) -> None:
    assert tp_of(tmp_path, PASSED[name]) == 4


def test_an_unknown_value_in_single_quotes_of_given_commands_stays_unknown(tmp_path: Path) -> None:
    script = (
        "srun bash -c \"torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 8  # don't stop\n"
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 8 --hidden-size 64 "
        "--save '$RUNS/a' --tensor-model-parallel-size '$TP'\"\n"
    )
    with pytest.raises(InputError, match="give it as TP=value"):
        tp_of(tmp_path, script)
    assert tp_of(tmp_path, script, TP="4") == 4
