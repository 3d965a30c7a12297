"""`--slurm KEY=VALUE`: what becomes of a right one, and what is said of a wrong one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.lab.cluster.slurm_options import slurm_options

FOLDER = Path("/shared/run")
LEAST = ("account=research", "gpus_per_node=8")


def test_ranks_are_those_of_all_nodes() -> None:
    options = slurm_options((*LEAST, "nodes=4"), FOLDER)
    assert options.ranks == 32
    assert options.fields["nodes"] == 4
    assert options.fields["torchrun_nproc_per_node"] == 8


def test_a_cluster_that_takes_no_request_for_gpus_gets_none() -> None:
    options = slurm_options(("account=a", "ranks_per_node=2"), FOLDER)
    assert options.ranks == 2
    assert "gpus_per_node" not in options.fields


def test_a_container_sees_the_folder_under_its_own_path() -> None:
    options = slurm_options(
        (*LEAST, "container_image=img:1", "container_mounts=/data:/data,/home"), FOLDER
    )
    assert options.fields["container_mounts"] == ["/data:/data", "/home", f"{FOLDER}:{FOLDER}"]
    assert not any("PATH" in line for line in options.setup)


def test_without_a_container_the_running_installation_comes_first() -> None:
    options = slurm_options((*LEAST, "setup=module load cuda", "setup=ulimit -n 65536"), FOLDER)
    *own, path = options.setup
    assert own == ["module load cuda", "ulimit -n 65536"]
    assert path.startswith(f"export PATH='{Path(sys.executable).parent}':")


def test_a_named_gpu_is_known_by_its_compute_capability() -> None:
    assert slurm_options((*LEAST, "gpu=b200"), FOLDER).compute_capability == "10.0"
    assert slurm_options((*LEAST, "gpu=H100"), FOLDER).compute_capability == "9.0"


def test_dashes_are_taken_for_underscores() -> None:
    assert slurm_options(("account=a", "gpus-per-node=2"), FOLDER).ranks == 2


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("gpus_per_node=8",), "account=NAME"),
        (("account=a",), "gpus_per_node=N"),
        ((*LEAST, "nodes=0"), "nodes=0"),
        ((*LEAST, "nodes=two"), "nodes=two"),
        ((*LEAST, "time=soon"), "00:30:00"),
        ((*LEAST, "partition="), "partition="),
        ((*LEAST, "exclusive=yes"), "true or false"),
        ((*LEAST, "gpus=4"), "unknown key gpus"),
        ((*LEAST, "partition"), "KEY=VALUE"),
        ((*LEAST, "partition=a", "partition=b"), "given twice"),
        ((*LEAST, "container_mounts=/a:/a"), "container_image"),
        ((*LEAST, "setup=a\nb"), "KEY=VALUE"),
        ((*LEAST, "gpu=abacus"), "unknown GPU"),
    ],
)
def test_what_is_wrong_is_named(pairs: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        slurm_options(pairs, FOLDER)


@pytest.mark.parametrize(
    "time", ["30", "30:00", "1:30:00", "00:30:00", "2-0", "2-12:00", "1-00:00:00"]
)
def test_times_are_those_that_sbatch_takes(time: str) -> None:
    assert slurm_options((*LEAST, f"time={time}"), FOLDER).fields["time"] == time
