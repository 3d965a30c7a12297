"""GPUs by name: what each name means, and what is not known of some."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlapkit.errors import InputError
from overlapkit.hardware import Gpu, data_sheet, find_gpu, gpus
from overlapkit.plan.estimate.machine import machine_of

Command = Callable[..., Any]

NAMES = {
    "h100": "h100",
    "H100-SXM": "h100",
    "H100SXM5": "h100",
    "NVIDIA H100 80GB HBM3": "h100",
    "dgx-h100": "h100",
    "GB200 NVL72": "gb200",
    "NVIDIA GB300": "gb300",
    "NVIDIA B300 SXM6 AC": "b300",
    "nvidia h20": "h20",
    "NVIDIA H20-3e": "h20",
    "NVIDIA H800": "h800",
    "NVIDIA A800-SXM4-80GB": "a800",
    "VR200": "vr200",
    "Vera Rubin NVL72": "vr200",
    "NVIDIA Rubin": "r100",
    " R100 ": "r100",
}
WHOLE = ["a100", "h100", "h200", "a800", "h800", "b200", "b300", "gb200", "gb300"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_as_tools_and_vendors_write_it(name: str) -> None:
    assert find_gpu(name)[0] == NAMES[name]


@pytest.mark.parametrize("name", ["h10", "x100", "hopper", "", "h1000", "rtx 4090", "sxm5"])
def test_another_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown GPU.*known are a100, h100") as refused:
        find_gpu(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", gpus())
def test_the_generation_of_every_gpu_is_known(name: str) -> None:
    gpu = gpus()[name]
    assert gpu.sm100_or_newer == (gpu.arch in ("blackwell", "rubin"))


@pytest.mark.parametrize("name", WHOLE)
def test_a_data_sheet_that_is_known_in_full_makes_a_machine(name: str) -> None:
    assert machine_of(name).rate("bf16").value > 0
    assert data_sheet(name).sm == gpus()[name].sm


def test_export_variants_differ_in_nvlink_alone() -> None:
    for name, origin in (("a800", "a100"), ("h800", "h100")):
        mine, theirs = data_sheet(name), data_sheet(origin)
        differing = {
            field
            for field in type(mine).__struct_fields__
            if getattr(mine, field) != getattr(theirs, field)
        }
        # The memory as nvidia-smi shows it is not known.
        assert differing == {"nvlink_gbps_per_dir", "memory_mib"}
        assert mine.nvlink_gbps_per_dir == 200


@pytest.mark.parametrize("name", sorted(gpus().keys() - set(WHOLE)))
def test_what_is_not_known_is_named_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as refused:
        data_sheet(name)
    text = str(refused.value)
    assert re.fullmatch(rf"--gpu {name}: [^\n]+", text)
    for field, words in (("sm", "SMs"), ("bf16_flop_per_clock", "BF16 operations per SM")):
        assert (words in text) == (getattr(gpus()[name], field) is None)
    assert "--network" in text
    with pytest.raises(InputError) as refused:
        data_sheet(name, network_gbps=400)
    assert "--network" not in str(refused.value)


def test_a_network_that_the_user_gives_is_the_adapter() -> None:
    assert data_sheet("h100", network_gbps=100).nic_gbps == 100
    assert data_sheet("h100").nic_gbps == 400


@pytest.mark.parametrize("name", gpus())
def test_explain_and_doctor_need_the_generation_alone(
    name: str, config: Callable[..., str], overlapkit: Command, doctor: Command
) -> None:
    file = config("model: {tensor_model_parallel_size: 2, sequence_parallel: true}")
    hopper = gpus()[name].arch in ("ampere", "hopper")
    done = overlapkit("explain", file, "--world-size", "8", "--gpu", name.upper(), "--json")
    assert done.status == 0, done.err
    assert done.document["gpu"] == {"name": name, "assumed": False}
    assert done.document["launch_env"]["CUDA_DEVICE_MAX_CONNECTIONS"] == ("1" if hopper else "32")
    assert doctor(file, "--world-size", "8", "--gpu", name, "--json").status in (0, 1)


def test_a_plan_says_which_figures_are_missing(plan: Command) -> None:
    done = plan("--model", "llama3_8b", "--gpu", "vr200", "--world-size", "72")
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "figures of vr200" in done.err and "BF16 rate" in done.err


def test_a_gpu_without_figures_is_a_gpu() -> None:
    assert Gpu("rubin").least_capability == "10.0"
    assert Gpu("hopper", "9.0").least_capability == "9.0"


def test_every_figure_has_a_source() -> None:
    file = Path(__file__).parents[2] / "src/overlapkit/data/hardware.json"
    text = file.read_text(encoding="utf-8")
    for name in ("a800", "h800", "h20", "vr200", "r100"):
        assert name in text.partition('"gpus"')[0]
