"""How blocks are grouped by ranks and environment, and read back for --collect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from overlapkit.errors import InputError
from overlapkit.lab.experiment import (
    EXPERIMENT_FILE,
    Experiment,
    make_experiment,
    read_experiment,
    write_jobs,
)
from overlapkit.lab.scenario import Setting
from overlapkit.lab.scenarios import find

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"


def _experiment(*names: str, setting: Setting) -> Experiment:
    scenarios = [find(name) for name in names]
    return make_experiment(scenarios, setting, rate_mbit="auto", corpus=None)


def test_the_fewest_ranks_come_first_and_a_block_is_run_once() -> None:
    experiment = _experiment("dp-pp", "pp", "tp", setting=Setting())
    assert [group.ranks for group in experiment.groups] == [1, 2, 4]
    names = [block.name for group in experiment.groups for block in group.job.blocks]
    assert len(names) == len(set(names))
    assert experiment.ranks == 4


def test_ranks_on_a_cpu_have_no_environment_of_gpus() -> None:
    for group in _experiment("tp", setting=Setting()).groups:
        assert not any(name.startswith(("CUDA", "NVTE", "NCCL")) for name in group.environment)


def test_layouts_that_need_another_number_of_queues_run_apart() -> None:
    setting = Setting(device="cuda", gpus=2, compute_capability="9.0")
    experiment = _experiment("dp", "tp", setting=setting)
    queues = {
        block.name: group.environment[QUEUES]
        for group in experiment.groups
        for block in group.job.blocks
    }
    # Hopper: a tensor-parallel collective must start in the order of its launch.
    assert queues["tp"] == "1"
    assert queues["dp"] != "1"
    assert len({group.name for group in experiment.groups}) == len(experiment.groups)
    # No queue has to be given up on Blackwell.
    blackwell = _experiment("dp", "tp", setting=replace(setting, compute_capability="10.0"))
    assert all(group.environment[QUEUES] != "1" for group in blackwell.groups)


def test_a_gpu_has_no_link_whose_rate_could_be_chosen() -> None:
    cpu, gpu = (
        _experiment("dp", setting=Setting(device=device, gpus=2)).groups[0].job.rate_mbit
        for device in ("cpu", "cuda")
    )
    assert cpu == "auto"
    assert gpu is None


def test_an_experiment_is_read_as_it_was_written(tmp_path: Path) -> None:
    experiment = _experiment(
        "pp", "dp", setting=Setting(steps=2, base={"model": {"hidden_size": 64}})
    )
    write_jobs(experiment, tmp_path)
    assert read_experiment(tmp_path) == experiment


def test_a_folder_without_an_experiment_or_with_another_versions_is_reported(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="contains no run of the lab"):
        read_experiment(tmp_path)
    (tmp_path / EXPERIMENT_FILE).write_bytes(msgspec.json.encode({"scenarios": ["dp"]}))
    with pytest.raises(InputError, match="another version"):
        read_experiment(tmp_path)
