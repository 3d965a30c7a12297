"""How blocks are put together into groups of ranks with one environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from overlapkit.errors import InputError
from overlapkit.lab.experiment import PLAN_FILE, Plan, plan, read_plan, write_jobs
from overlapkit.lab.scenario import Setting
from overlapkit.lab.scenarios import find

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"


def _plan(*names: str, setting: Setting) -> Plan:
    return plan([find(name) for name in names], setting, "auto", None)


def test_the_fewest_ranks_come_first_and_a_block_is_run_once() -> None:
    run = _plan("dp-pp", "pp", "tp", setting=Setting())
    assert [group.ranks for group in run.groups] == [1, 2, 4]
    names = [block.name for group in run.groups for block in group.job.blocks]
    assert len(names) == len(set(names))
    assert run.ranks == 4


def test_ranks_on_a_cpu_have_no_environment_of_gpus() -> None:
    for group in _plan("tp", setting=Setting()).groups:
        assert not any(name.startswith(("CUDA", "NVTE", "NCCL")) for name in group.environment)


def test_layouts_that_need_another_number_of_queues_run_apart() -> None:
    setting = Setting(device="cuda", gpus=2, compute_capability="9.0")
    run = _plan("dp", "tp", setting=setting)
    queues = {
        block.name: group.environment[QUEUES] for group in run.groups for block in group.job.blocks
    }
    # Hopper: a tensor-parallel collective must start in the order of its launch.
    assert queues["tp"] == "1"
    assert queues["dp"] != "1"
    assert len({group.name for group in run.groups}) == len(run.groups)
    # No queue has to be given up on Blackwell.
    blackwell = _plan("dp", "tp", setting=replace(setting, compute_capability="10.0"))
    assert all(group.environment[QUEUES] != "1" for group in blackwell.groups)


def test_a_gpu_has_no_link_whose_rate_could_be_chosen() -> None:
    cpu, gpu = (
        _plan("dp", setting=Setting(device=device, gpus=2)).groups[0].job.rate_mbit
        for device in ("cpu", "cuda")
    )
    assert cpu == "auto"
    assert gpu is None


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = _plan("pp", "dp", setting=Setting(steps=2, base={"model": {"hidden_size": 64}}))
    write_jobs(run, tmp_path)
    assert read_plan(tmp_path) == run


def test_a_folder_without_a_plan_or_with_another_versions_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--executor"):
        read_plan(tmp_path)
    (tmp_path / PLAN_FILE).write_bytes(msgspec.json.encode({"scenarios": ["dp"]}))
    with pytest.raises(InputError, match="another version"):
        read_plan(tmp_path)
