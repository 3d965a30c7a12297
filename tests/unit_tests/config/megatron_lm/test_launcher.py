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
        ("mpirun -np 16 -npernode 4 python", ("mpirun", 4, True)),
        ("mpirun -np 16 --map-by ppr:8:node python", ("mpirun", 8, True)),
        ("mpirun -np 16 --map-by ppr:4:socket python", ("mpirun", None, True)),
        ("mpirun -np 16 -N 8 python", ("mpirun", 8, True)),
        ("mpirun -np 8 -H one:4,two:4 python", ("mpirun", 4, True)),
        ("mpirun -np 8 -H one:4,two:2 python", ("mpirun", None, True)),
        ("mpiexec -n 16 -ppn 4 python", ("mpirun", 4, True)),
        ("srun -N 2 --gpus-per-node=h100:4 python", ("srun", 4, None)),
        ("srun -N 2 -n 16 --gres gpu:h100:8 python", ("srun", 8, None)),
        ("srun -N 4 -n 16 python", ("srun", 4, None)),
        ("srun -N 3 -n 16 python", ("srun", None, None)),
        ("srun --gpus-per-node=4 -N 2 torchrun --nproc_per_node=gpu", ("torchrun", 4, False)),
        ("torchrun --nproc_per_node=gpu", ("torchrun", None, False)),
        ("deepspeed --num_gpus 8 --num_nodes 2", ("deepspeed", 8, None)),
        ("aprun -n 8 -N 4 python", ("aprun", 4, True)),
        ("jsrun -n 4 -a 2 -r 2 python", ("jsrun", 4, True)),
        ("jsrun -n 4 -a 2 python", ("jsrun", None, True)),
        ("jsrun -n 2 -a 4 -g 4 -c 42 -r 1 python", ("jsrun", 4, True)),
        ("jsrun -n8 -r4 python", ("jsrun", 4, True)),
        ("jsrun -n 2 python", ("jsrun", None, True)),
        ("flux run -N 2 -n 16 python", ("flux", 8, None)),
        ("flux run -N 2 --tasks-per-node=8 python", ("flux", 8, None)),
        ("aprun -n 16 -N 8 python", ("aprun", 8, True)),
        ("ibrun python", ("ibrun", None, True)),
        ("docker run --gpus all -e A image torchrun --nproc_per_node=8", ("torchrun", 8, False)),
        ("nsys profile -o x mpirun -np 16 -N 8 python", ("mpirun", 8, True)),
        ("python", None),
    ],
)
def test_the_launcher(line: str, launcher: tuple[object, ...] | None, config) -> None:
    settings = read_megatron_lm(config(f"#!/bin/bash\n{line} {FLAGS}\n", "train.sh"))
    assert settings.launch is not None
    found = settings.launch.launcher
    assert (found and (found.name, found.processes_per_node, found.has_mpi)) == launcher


@pytest.mark.parametrize(
    ("batch", "processes"),
    [
        ("#SBATCH --gpus-per-node=4", 4),
        ("#SBATCH --gpus-per-node=h100:4", 4),
        ("#SBATCH --gres=gpu:4", 4),
        ("#SBATCH --ntasks-per-node=2", 2),
        ("#SBATCH --gpus-per-node=8\n#SBATCH --ntasks-per-node 4", 4),
        ("export SLURM_GPUS_PER_NODE=4", 4),
        ("#SBATCH --nodes=2", None),
    ],
)
def test_the_processes_of_a_batch_script(batch: str, processes: int | None, config) -> None:
    script = f"#!/bin/bash\n{batch}\nsrun python {FLAGS}\n"
    settings = read_megatron_lm(config(script, "train.sh"))
    assert settings.launch is not None and settings.launch.launcher is not None
    assert settings.launch.launcher.processes_per_node == processes


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("srun --gpus-per-node=4 torchrun --nnodes 2 --nproc_per_node=gpu", 8),
        ("mpirun -npernode 4 python", 8),
        ("srun -N 2 --ntasks-per-node 4 python", 8),
        ("aprun -n 8 -N 4 -d 16 python", 8),
        ("jsrun -n 4 -a 2 -g 2 -r 2 python", 8),
        ("jsrun --np=8 --nrs 2 python", 8),
        ("flux run -N 2 --tasks-per-node=4 python", 8),
        ("flux run -n 8 -g 1 python", 8),
        ("mpirun_rsh -np 8 -hostfile hosts python", 8),
        ("mpirun -H one:8,two:8 python", 16),
        ("mpirun -np 8 -H one:8,two:8 python", 8),
        ("jsrun -n 2 -a 4 -g 4 -c 42 python", 8),
        ("jsrun -n8 -r4 -g1 python", 8),
        ("jsrun --np=16 python", 16),
        ("flux run -N 2 -n 16 python", 16),
        ("flux run -N2 --tasks-per-node=8 python", 16),
        ("aprun -n 16 -N 8 python", 16),
        ("ibrun -n 16 python", 16),
        ("salloc -N 4 --ntasks-per-node=8 srun python", 32),
        ("salloc -N 4 srun --ntasks-per-node=8 python", 32),
        ("nohup timeout 60 numactl -N 0 torchrun --nnodes=2 --nproc-per-node=8", 16),
    ],
)
def test_the_size_of_a_job(line: str, size: int, config) -> None:
    script = f"#!/bin/bash\n#SBATCH --nodes=2\n{line} {FLAGS}\n"
    settings = read_megatron_lm(config(script, "train.sh"))
    assert settings.launch is not None and settings.launch.world_size == size


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("srun --export=ALL,CUDA_DEVICE_MAX_CONNECTIONS=8 python", "8"),
        ("srun --export ALL,CUDA_DEVICE_MAX_CONNECTIONS=8 python", "8"),
        ("srun --export=CUDA_DEVICE_MAX_CONNECTIONS=8 python", "8"),
        ("srun --export=ALL python", "1"),
        ("srun --export=CUDA_DEVICE_MAX_CONNECTIONS python", "1"),
        ("srun --export=NONE python", None),
        ("srun --export=OTHER=2 python", None),
        ("env CUDA_DEVICE_MAX_CONNECTIONS=8 torchrun", "8"),
        ("env -i torchrun", None),
        ("env -i CUDA_DEVICE_MAX_CONNECTIONS=8 torchrun", "8"),
        ("env -u CUDA_DEVICE_MAX_CONNECTIONS torchrun", None),
        ("mpirun -x CUDA_DEVICE_MAX_CONNECTIONS=8 python", "8"),
        ("mpirun -x CUDA_DEVICE_MAX_CONNECTIONS python", "1"),
        ("mpiexec -genv CUDA_DEVICE_MAX_CONNECTIONS 8 -n 8 python", "8"),
        ("CUDA_DEVICE_MAX_CONNECTIONS=8 torchrun", "8"),
    ],
)
def test_what_a_launcher_hands_to_the_job(line: str, value: str | None, config) -> None:
    script = f"#!/bin/bash\nexport CUDA_DEVICE_MAX_CONNECTIONS=1\n{line} {FLAGS}\n"
    settings = read_megatron_lm(config(script, "train.sh"))
    assert settings.launch is not None
    assert settings.launch.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == value
    dropped = [note for note in settings.launch.notes if "does not reach the job" in note]
    assert bool(dropped) is (value is None)


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
