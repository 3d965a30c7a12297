"""Flags and exports changed in a launch script, in every form in which people write them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.edits import REMOVED, Edit
from overlapkit.config.reading import Reading
from overlapkit.config.sources import Source
from overlapkit.fix.splice import CannotEdit
from overlapkit.fix.target import Target

SIZES = (
    "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --micro-batch-size 1 "
    "--global-batch-size 64 --seq-length 4096 --bf16"
)
RUN = "torchrun --nproc-per-node 8 pretrain_gpt.py"
TP = "model.tensor_model_parallel_size"
GRAD = "ddp.overlap_grad_reduce"
QUEUES = "env.CUDA_DEVICE_MAX_CONNECTIONS"
ZERO = [("ddp.use_distributed_optimizer", True), ("optimizer.use_distributed_optimizer", True)]


def edited(
    folder: Path,
    text: str,
    edits: list[tuple[str, Any]],
    line: str = "",
    given: tuple[str, ...] = (),
) -> str:
    file = folder / "train.sh"
    file.write_bytes(text.encode())
    target = Target(Source("script", f"{file}{line}", given), Reading(), text)
    after, _ = target.edited(target.read(), [Edit(*edit) for edit in edits])
    return after.text


ARRAY = f"""\
#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=8   # queues
TP=8
PP=2
ARGS=(
    --tensor-model-parallel-size $TP
    --pipeline-model-parallel-size ${{PP}}  # stages
    --num-query-groups 8 --group-query-attention
    --sequence-parallel
    --overlap-grad-reduce
)
MORE="--overlap-param-gather --use-distributed-optimizer"
{RUN} \\
    "${{ARGS[@]}}" $MORE {SIZES} \\
    --recompute-granularity selective \\
    --recompute-modules core_attn moe
"""


@pytest.mark.parametrize(
    ("edits", "lines"),
    [
        (
            [(TP, 4)],
            ["-TP=8", "+TP=4"],
        ),
        (
            [("model.sequence_parallel", False)],
            ["-    --sequence-parallel"],
        ),
        (
            [(GRAD, False), ("ddp.overlap_param_gather", False)],
            [
                "-    --overlap-grad-reduce",
                '-MORE="--overlap-param-gather --use-distributed-optimizer"',
                '+MORE="--use-distributed-optimizer"',
            ],
        ),
        (
            [("model.num_layers_in_first_pipeline_stage", 3)],
            ["+    --decoder-first-pipeline-num-layers 3"],
        ),
        (
            [("model.recompute_modules", ["core_attn"])],
            ["-    --recompute-modules core_attn moe", "+    --recompute-modules core_attn"],
        ),
        (
            [("model.recompute_granularity", REMOVED), ("model.recompute_modules", REMOVED)],
            [
                f'-    "${{ARGS[@]}}" $MORE {SIZES} \\',
                "-    --recompute-granularity selective \\",
                "-    --recompute-modules core_attn moe",
                f'+    "${{ARGS[@]}}" $MORE {SIZES}',
            ],
        ),
        (
            [("model.recompute_method", "block")],
            [
                "-    --recompute-modules core_attn moe",
                "+    --recompute-modules core_attn moe \\",
                "+    --recompute-method block",
            ],
        ),
        (
            [(QUEUES, "1")],
            [
                "-export CUDA_DEVICE_MAX_CONNECTIONS=8   # queues",
                "+export CUDA_DEVICE_MAX_CONNECTIONS=1   # queues",
            ],
        ),
        ([(QUEUES, REMOVED)], ["-export CUDA_DEVICE_MAX_CONNECTIONS=8   # queues"]),
        ([("env.NCCL_DEBUG", "INFO")], ["+export NCCL_DEBUG=INFO"]),
    ],
)
def test_an_edit_changes_its_lines(
    edits: list[tuple[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    after = edited(tmp_path, ARRAY, edits)
    diff = difflib.unified_diff(ARRAY.splitlines(), after.splitlines(), n=0)
    assert [line for line in list(diff)[2:] if not line.startswith("@@")] == lines


@pytest.mark.parametrize(
    ("text", "edits", "old", "new"),
    [
        # The number of GPUs follows from the variable too: only the flag is changed.
        (
            f"TP=8\ntorchrun --nproc-per-node $TP pretrain_gpt.py "
            f"--tensor-model-parallel-size $TP {SIZES}\n",
            [(TP, 2)],
            "size $TP --num",
            "size 2 --num",
        ),
        (
            f"TP=${{TP:-8}}\n{RUN} --tensor-model-parallel-size ${{TP}} {SIZES}\n",
            [(TP, 2)],
            "${TP}",
            "2",
        ),
        (f"{RUN} --tensor_model_parallel_size=8 {SIZES}", [(TP, 2)], "size=8", "size=2"),
        (
            f'A=("--tensor-model-parallel-size" "8")\n{RUN} "${{A[@]}}" {SIZES}\n',
            [(TP, 2)],
            '"8"',
            '"2"',
        ),
        (
            f"OV=--overlap-grad-reduce\n{RUN} $OV {SIZES}\n",
            [(GRAD, False)],
            "OV=--overlap-grad-reduce",
            "OV=",
        ),
        (
            f"{RUN} --overlap-grad-reduce {SIZES} --overlap-grad-reduce\n",
            [(GRAD, False)],
            "py --overlap-grad-reduce",
            "py",
        ),
        (
            f"CUDA_DEVICE_MAX_CONNECTIONS=8 B=1 {RUN} {SIZES}",
            [(QUEUES, REMOVED)],
            "CUDA_DEVICE_MAX_CONNECTIONS=8 ",
            "",
        ),
        (
            "srun --export=ALL,CUDA_DEVICE_MAX_CONNECTIONS=8,B=2 -n 8 python pretrain_gpt.py "
            f"{SIZES}\n",
            [(QUEUES, "1")],
            "CONNECTIONS=8",
            "CONNECTIONS=1",
        ),
        (
            f"CUDA_DEVICE_MAX_CONNECTIONS=8\n{RUN} {SIZES}\n",
            [(QUEUES, "1")],
            "CUDA_DEVICE_MAX_CONNECTIONS=8",
            "export CUDA_DEVICE_MAX_CONNECTIONS=1",
        ),
        (
            f"sbatch <<EOF\n#SBATCH -N 2\nsrun -n 16 python pretrain_gpt.py \\\n  {SIZES}\nEOF\n",
            [(GRAD, True)],
            "--bf16",
            "--bf16 --overlap-grad-reduce",
        ),
        (
            f'cmd="{RUN} {SIZES}"\nsrun -N 2 bash -c "$cmd --overlap-grad-reduce"\n',
            [("ddp.align_param_gather", False)],
            None,
            "--no-align-param-gather",
        ),
    ],
)  # fmt: skip
def test_every_form(
    text: str, edits: list[tuple[str, Any]], old: str | None, new: str, tmp_path: Path
) -> None:
    for ends in ("\n", "\r\n"):
        before = text.replace("\n", ends)
        after = edited(tmp_path, before, edits)
        if old is None:
            assert new in after
        elif before.count("--overlap-grad-reduce") > 1:
            assert after == before.replace(" --overlap-grad-reduce", "")
        else:
            assert after == before.replace(old, new)


TWO = f"""\
ARGS="{SIZES} --tensor-model-parallel-size 8"
{RUN} $ARGS --sequence-parallel
{RUN} $ARGS --overlap-grad-reduce
"""


def test_only_the_chosen_launch_changes(tmp_path: Path) -> None:
    rows = TWO.splitlines()
    for edits, row, new in (
        (ZERO, 2, f"{rows[2]} --use-distributed-optimizer"),
        ([("model.sequence_parallel", True)], 2, f"{rows[2]} --sequence-parallel"),
        ([(QUEUES, "1")], 1, f"CUDA_DEVICE_MAX_CONNECTIONS=1 {rows[1]}"),
    ):
        after = edited(tmp_path, TWO, edits, line=f":{row + 1}").splitlines()
        assert after == [*rows[:row], new, *rows[row + 1 :]]


def test_a_line_that_moves_is_still_the_chosen_one(tmp_path: Path) -> None:
    file = tmp_path / "train.sh"
    file.write_text(TWO)
    target = Target(Source("script", f"{file}:3"), Reading(), TWO)
    after, settings = target.edited(target.read(), [Edit(QUEUES, "1")])
    assert after.source.name == f"{file}:4"
    assert settings.launch and settings.launch.environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


@pytest.mark.parametrize(
    ("text", "edits", "options", "why"),
    [
        (TWO, [(TP, 2)], {"line": ":3"}, r"train.sh:1: no change of one place"),
        (
            f"{RUN} --tensor-model-parallel-size $TP {SIZES}\n",
            [(TP, 2)],
            {"given": ("TP=8",)},
            "TP is given on the command line: give TP=2",
        ),
        (
            f"{RUN} --tensor-model-parallel-size 8 {SIZES}\n",
            [(TP, 2)],
            {"given": (f"{TP}=4",)},
            f"{TP}=4 on the command line sets it",
        ),
        (f'ARGS="{SIZES}"\n', [(QUEUES, "1")], {}, "starts no job: export"),
        (f"{RUN} {SIZES}\n", [("model.tp_comm_split_rs", "no")], {}, "cannot set"),
    ],
)
def test_what_cannot_be_changed(
    text: str, edits: list[tuple[str, Any]], options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotEdit, match=why):
        edited(tmp_path, text, edits, **options)
