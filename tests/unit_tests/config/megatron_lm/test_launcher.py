"""How a script starts its job's processes, and what rules make of it."""

from __future__ import annotations

import pytest

from overlapkit.config.megatron_lm.script import read_megatron_lm

FLAGS = (
    "pretrain_gpt.py --num-layers 8 --hidden-size 256 --num-attention-heads 8 --seq-length 128 "
    "--bf16 --tensor-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 64"
)


@pytest.mark.parametrize(
    ("line", "launcher"),
    [
        ("torchrun --nproc-per-node 8 --nnodes 2", ("torchrun", 8, False)),
        ("python -m torch.distributed.run --nproc_per_node=4", ("torchrun", 4, False)),
        ("srun --mpi=pmix -N 2 --ntasks-per-node=8 python", ("srun", 8, True)),
        ("srun -N 2 --ntasks-per-node=8 python", ("srun", 8, None)),
        ("srun torchrun --nproc-per-node 8 --nnodes 2", ("torchrun", 8, False)),
        ("mpirun -np 16 python", ("mpirun", None, True)),
        ("python", None),
    ],
)
def test_the_launcher(line: str, launcher: tuple[object, ...] | None, config) -> None:
    settings = read_megatron_lm(config(f"#!/bin/bash\n{line} {FLAGS}\n", "train.sh"))
    assert settings.launch is not None
    found = settings.launch.launcher
    assert (found and (found.name, found.processes_per_node, found.has_mpi)) == launcher


SCRIPT = f"""#!/bin/bash
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
torchrun --nproc-per-node 8 {FLAGS} --cuda-graph-impl transformer_engine
"""


@pytest.mark.parametrize(("more", "stops"), [("", True), ("export NCCL_GRAPH_REGISTER=0\n", False)])
def test_graphs_with_segments_that_grow(more: str, stops: bool, overlapkit, config) -> None:
    script = config(SCRIPT.replace("torchrun", f"{more}torchrun"), "train.sh")
    result = overlapkit("explain", "--from-megatron-lm", script, "--gpu", "b200", "--json")
    rules = {d["rule"] for d in result.document["decisions"]}
    assert ("lm.graphs-expandable" in rules) is stops
    assert "core.graphs-expandable" not in rules
