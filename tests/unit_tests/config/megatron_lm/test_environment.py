"""What the processes of a job see of the variables that a script exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.config.run import Launch

NAME = "CUDA_DEVICE_MAX_CONNECTIONS"
JOB = (
    "pretrain_gpt.py --num-layers 8 --hidden-size 256 --num-attention-heads 8 --seq-length 128 "
    "--bf16 --tensor-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 64"
)
TORCHRUN = f"torchrun --nproc-per-node 8 {JOB}"


def launch_of(
    config: Callable[..., str], command: str, before: str = f"export {NAME}=1", **files: str
) -> Launch:
    for name, text in files.items():
        config(text, name.replace("__", "."))
    script = config(f"#!/bin/bash\n{before}\n{command}\n", "train.sh")
    launch = read_megatron_lm(script).launch
    assert launch is not None
    return launch


def notes(launch: Launch) -> str:
    return "\n".join(launch.notes)


@pytest.mark.parametrize(
    "command",
    [
        "nohup {} &",
        "timeout 3600 {}",
        "timeout -k 10s --signal=TERM 2h {}",
        "numactl --cpunodebind=0 --membind=0 {}",
        "taskset -c 0-31 {}",
        "stdbuf -oL -eL {}",
        "nice -n 5 {}",
        "time {}",
        "/usr/bin/time -v {}",
        "unbuffer {}",
        "setsid {}",
        "exec {}",
        "nsys profile -t cuda,nvtx -o report --force-overwrite true {}",
        "ncu --set full -o report {}",
        "env {}",
        "sudo -E {}",
        "sudo --preserve-env {}",
        "sudo --preserve-env=PATH,CUDA_DEVICE_MAX_CONNECTIONS {}",
        "srun {}",
        "srun --export=ALL {}",
        "srun --container-image=x.sqsh --container-env=A,B {}",
        "srun --container-image=x.sqsh bash -c '{}'",
        "bash -c '{}'",
        "bash -lc '{}'",
        "bash -o pipefail -ec '{}'",
        "su root -c '{}'",
        "script -q -c '{}' log.txt",
        "singularity exec --nv image.sif {}",
        "apptainer run --nv -B /data image.sif bash -c '{}'",
        "singularity exec --cleanenv --env CUDA_DEVICE_MAX_CONNECTIONS=1 image.sif {}",
        "docker run --gpus all -e CUDA_DEVICE_MAX_CONNECTIONS image {}",
        "docker run --gpus all --env CUDA_DEVICE_MAX_CONNECTIONS=1 image {}",
        "docker run --env=CUDA_DEVICE_MAX_CONNECTIONS=1 image bash -c '{}'",
        "docker run -eCUDA_DEVICE_MAX_CONNECTIONS=1 image {}",
        "docker exec -e CUDA_DEVICE_MAX_CONNECTIONS=$CUDA_DEVICE_MAX_CONNECTIONS it bash -c '{}'",
        "docker run --env-file job.env image {}",
        "podman run --env-host image {}",
        "nerdctl run -e CUDA_DEVICE_MAX_CONNECTIONS image bash -c '{}'",
        "enroot start -e CUDA_DEVICE_MAX_CONNECTIONS image {}",
        "kubectl exec pod -- env CUDA_DEVICE_MAX_CONNECTIONS=1 {}",
        "ssh node1 CUDA_DEVICE_MAX_CONNECTIONS=1 {}",
        "ssh -p 22 root@node1 'export CUDA_DEVICE_MAX_CONNECTIONS=1; {}'",
        "pdsh -w node[1-2] 'export CUDA_DEVICE_MAX_CONNECTIONS=1; {}'",
        "sbatch --nodes 2 --wrap '{}'",
        "sbatch --wrap='{}'",
        "jsrun -n 2 -a 4 -g 4 {}",
        "jsrun -n 2 -E CUDA_DEVICE_MAX_CONNECTIONS=1 {}",
        "flux run -N 2 -n 16 {}",
        "flux run --env=-* --env=CUDA_DEVICE_MAX_CONNECTIONS {}",
        "aprun -n 16 {}",
        "ibrun {}",
        "mpiexec.hydra -n 8 -hosts a,b {}",
        "mpirun -hosts a,b -ppn 8 {}",
        "mpirun -genvlist CUDA_DEVICE_MAX_CONNECTIONS -n 8 {}",
        "mpiexec -genvnone -genv CUDA_DEVICE_MAX_CONNECTIONS 1 -n 8 {}",
        "mpirun -np 16 -H a:8,b:8 -x CUDA_DEVICE_MAX_CONNECTIONS {}",
        "mpirun -np 16 --hostfile hosts -x CUDA_DEVICE_MAX_CONNECTIONS=1 {}",
        "mpirun -np 8 -H a:8 {}",
        "mpirun -np 8 {}",
        "qsub -V -- {}",
        "bsub -env all {}",
        "env -S 'CUDA_DEVICE_MAX_CONNECTIONS=1 {}'",
        "env -u OTHER -C /tmp {}",
        "deepspeed --num_gpus 8 " + JOB,
        "deepspeed --hostfile hosts --no_ssh " + JOB,
    ],
)
def test_a_variable_that_reaches_the_job(command: str, config: Callable[..., str]) -> None:
    config(f"# of the job\n{NAME}=1\n", "job.env")
    launch = launch_of(config, command.replace("{}", TORCHRUN))
    assert launch.environment.get(NAME) == "1"
    assert NAME not in notes(launch)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("sudo {}", "-E"),
        ("sudo --preserve-env=PATH {}", "-E"),
        ("env -i {}", "empties"),
        ("env -uCUDA_DEVICE_MAX_CONNECTIONS {}", "removes"),
        ("env --unset=CUDA_DEVICE_MAX_CONNECTIONS {}", "removes"),
        ("su - root -c '{}'", "login shell"),
        ("docker run --gpus all image {}", "-e"),
        ("docker run --gpus all image bash -c '{}'", "-e"),
        ("docker exec -it box bash -lc '{}'", "docker exec"),
        ("podman run image {}", "podman run"),
        ("enroot start image {}", "enroot start"),
        ("singularity exec --cleanenv image.sif {}", "--cleanenv"),
        ("apptainer exec -e image.sif bash -c '{}'", "apptainer -e"),
        ("kubectl exec pod -- bash -c '{}'", "kubectl exec"),
        ("ssh node1 {}", "ssh hands on no variables"),
        ("ssh node1 '{}'", "ssh hands on no variables"),
        ("pdsh -w node1 '{}'", "pdsh"),
        ("srun --export=NONE bash -c '{}'", "srun --export=NONE"),
        ("sbatch --export=NONE --wrap='{}'", "sbatch --export=NONE"),
        ("mpiexec -genvnone -n 8 {}", "-genvnone"),
        ("mpiexec -envlist OTHER -n 8 {}", "-envlist"),
        ("qsub -- {}", "qsub"),
        ("bsub -env none {}", "bsub"),
        ("jsrun -D CUDA_DEVICE_MAX_CONNECTIONS -n 2 {}", "jsrun -D"),
        ("flux run --env-remove=CUDA_* {}", "flux removes"),
        ("flux run --env=-CUDA_* {}", "flux removes"),
    ],
)
def test_a_variable_that_does_not_reach_the_job(
    command: str, names: str, config: Callable[..., str]
) -> None:
    launch = launch_of(config, command.replace("{}", TORCHRUN))
    assert NAME not in launch.environment
    assert f"train.sh:2: {NAME}=1 does not reach the job" in notes(launch)
    assert names in notes(launch)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("mpirun -np 16 -H a:8,b:8 {}", "-x NAME"),
        ("mpirun -np 16 --hostfile hosts {}", "-x NAME"),
        ("mpirun -np 16 -x PATH -H $HOSTS {}", "-x NAME"),
        ("deepspeed --hostfile hosts " + JOB, ".deepspeed_env"),
        ("deepspeed --num_nodes 2 " + JOB, ".deepspeed_env"),
        ("srun --export=$VARIABLES {}", "srun --export"),
    ],
)
def test_a_variable_that_may_not_reach_every_process(
    command: str, names: str, config: Callable[..., str]
) -> None:
    launch = launch_of(config, command.replace("{}", TORCHRUN))
    assert NAME not in launch.environment and NAME in launch.unknown
    assert "may not reach every process of the job" in notes(launch)
    assert names in notes(launch)


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("env -i CUDA_DEVICE_MAX_CONNECTIONS=8 {}", "8"),
        ("sudo CUDA_DEVICE_MAX_CONNECTIONS=8 {}", "8"),
        ("nsys profile -e CUDA_DEVICE_MAX_CONNECTIONS=8,A=1 {}", "8"),
        ("nsys profile --env-var=A=1,CUDA_DEVICE_MAX_CONNECTIONS=8 {}", "8"),
        ("docker run image bash -c 'export CUDA_DEVICE_MAX_CONNECTIONS=8; {}'", "8"),
        ("docker run -e A=4 image env CUDA_DEVICE_MAX_CONNECTIONS=8 {}", "8"),
        ("singularity exec --env A=1,CUDA_DEVICE_MAX_CONNECTIONS=8 image.sif {}", "8"),
        ("SINGULARITYENV_CUDA_DEVICE_MAX_CONNECTIONS=8 singularity exec image.sif {}", "8"),
        ("APPTAINERENV_CUDA_DEVICE_MAX_CONNECTIONS=8 apptainer exec -e image.sif {}", "8"),
        ("mpirun -np 8 --mca mca_base_env_list 'A=1;CUDA_DEVICE_MAX_CONNECTIONS=8' {}", "8"),
        ("aprun -n 8 -e CUDA_DEVICE_MAX_CONNECTIONS=8 {}", "8"),
        ("qsub -v A=1,CUDA_DEVICE_MAX_CONNECTIONS=8 -- {}", "8"),
        ("bsub -env 'all, CUDA_DEVICE_MAX_CONNECTIONS=8' {}", "8"),
        ("flux run --env=CUDA_DEVICE_MAX_CONNECTIONS=8 {}", "8"),
        ("srun --export=ALL,CUDA_DEVICE_MAX_CONNECTIONS=8 bash -c '{}'", "8"),
    ],
)
def test_a_variable_that_a_launcher_sets(
    command: str, value: str, config: Callable[..., str]
) -> None:
    assert launch_of(config, command.replace("{}", TORCHRUN)).environment.get(NAME) == value


@pytest.mark.parametrize(
    "command",
    ["docker run image {}", "ssh node1 {}", "kubectl exec pod -- {}", "enroot start i {}"],
)
def test_what_starts_elsewhere_may_have_more_variables(
    command: str, config: Callable[..., str]
) -> None:
    launch = launch_of(config, command.replace("{}", TORCHRUN), before="")
    assert not launch.whole


@pytest.mark.parametrize(
    "command",
    [
        "bash inner.sh 4",
        "srun bash inner.sh 4",
        "srun -N 2 --ntasks-per-node=1 ./inner.sh 4",
        "nohup bash ./inner.sh 4 > log 2>&1 &",
        "timeout 3600 bash -e inner.sh 4",
        "mpirun -np 2 -npernode 1 bash inner.sh 4",
        "torchrun --no-python --nproc-per-node 8 bash inner.sh 4",
        "sbatch --nodes=2 inner.sh 4",
        "bash -c 'cd . && bash inner.sh 4'",
        "srun bash -c 'bash inner.sh 4'",
        "docker run -e CUDA_DEVICE_MAX_CONNECTIONS image bash inner.sh 4",
        "docker exec -e CUDA_DEVICE_MAX_CONNECTIONS box bash -c './inner.sh 4'",
        "ssh node1 CUDA_DEVICE_MAX_CONNECTIONS=1 bash inner.sh 4",
        'ssh node1 "export CUDA_DEVICE_MAX_CONNECTIONS=$CUDA_DEVICE_MAX_CONNECTIONS; ./inner.sh 4"',
        "sudo -E ./inner.sh 4",
    ],
)
def test_a_script_that_a_launcher_starts_is_followed(
    command: str, config: Callable[..., str]
) -> None:
    inner = f"#!/bin/bash\n{TORCHRUN} --context-parallel-size $1\n"
    config(inner, "inner.sh")
    script = config(f"#!/bin/bash\nexport {NAME}=1\n{command}\n", "train.sh")
    settings = read_megatron_lm(script)
    assert settings.launch is not None
    assert settings.launch.environment.get(NAME) == "1"
    assert settings.flat()["model.context_parallel_size"] == 4


def test_a_batch_script_of_any_name(config: Callable[..., str]) -> None:
    inner = f"#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=8\nsrun python {JOB}\n"
    launch = launch_of(config, "sbatch -J job train.slurm", train__slurm=inner)
    assert launch.world_size == 32


def test_a_wrapper_that_starts_its_arguments(config: Callable[..., str]) -> None:
    wrapper = f'#!/bin/bash\nexport {NAME}=8\nexec "$@"\n'
    command = f"srun -n 16 ./wrap.sh python {JOB}"
    launch = launch_of(config, command, wrap__sh=wrapper)
    assert launch.environment[NAME] == "8" and launch.world_size == 16


def test_a_wrapper_that_starts_its_arguments_in_a_way_that_is_not_followed(
    config: Callable[..., str],
) -> None:
    wrapper = "#!/bin/bash\npython -c 'import runpy' \"$@\"\n"
    launch = launch_of(config, f"srun -n 16 ./wrap.sh python {JOB}", wrap__sh=wrapper)
    assert launch.world_size == 16


def test_variables_that_do_not_reach_a_container_have_no_value_in_it(
    config: Callable[..., str], tmp_path: Path
) -> None:
    command = f"docker run image bash -c '{TORCHRUN} --context-parallel-size ${{CP:-2}}'"
    script = config(f"#!/bin/bash\nexport CP=4\n{command}\n", "train.sh")
    assert read_megatron_lm(script).flat()["model.context_parallel_size"] == 2


def test_the_file_of_variables_that_is_not_here(config: Callable[..., str]) -> None:
    launch = launch_of(config, f"docker run --env-file gone.env image {TORCHRUN}")
    assert not launch.whole
    assert "gone.env may set it, which is not read" in notes(launch)


RUNTIME = """{
  "env_vars": {
    "NCCL_DEBUG": "WARN",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1"
  }
}"""


@pytest.mark.parametrize(
    ("before", "command", "value"),
    [
        ("", f"ray job submit --runtime-env-json='{RUNTIME}' -- {{}}", "1"),
        (
            "",
            f"ray job submit --runtime-env-json \"$(cat <<'EOF'\n{RUNTIME}\nEOF\n)\" -- {{}}",
            "1",
        ),
        (
            f"RUN=$(cat <<EOF\n{RUNTIME}\nEOF\n)",
            'ray job submit --runtime-env-json="$RUN" -- {}',
            "1",
        ),
        (
            f"read -r -d '' RUN <<EOF\n{RUNTIME}\nEOF",
            'ray job submit --runtime-env-json="$RUN" -- {}',
            "1",
        ),
        ("", "ray job submit -- env CUDA_DEVICE_MAX_CONNECTIONS=8 {}", "8"),
        ("", "ray job submit -- bash -c 'export CUDA_DEVICE_MAX_CONNECTIONS=8; {}'", "8"),
        ("", f"ray job submit --runtime-env-json='{RUNTIME}' -- bash -c 'unset A; {{}}'", "1"),
        (
            "",
            f"ray job submit --runtime-env-json='{RUNTIME}' -- "
            "bash -c 'CUDA_DEVICE_MAX_CONNECTIONS=4 {}'",
            "4",
        ),
    ],
)
def test_the_variables_of_a_job_of_ray(
    before: str, command: str, value: str, config: Callable[..., str]
) -> None:
    launch = launch_of(config, command.replace("{}", TORCHRUN), before)
    assert launch.environment.get(NAME) == value


def test_a_job_of_ray_in_a_shell_does_not_have_the_variables_of_the_shell_that_submits_it(
    config: Callable[..., str],
) -> None:
    launch = launch_of(config, f"ray job submit -- bash -c '{TORCHRUN}'")
    assert NAME not in launch.environment and NAME in launch.unknown
    assert "train.sh:2" in notes(launch) and "env_vars" in notes(launch)
