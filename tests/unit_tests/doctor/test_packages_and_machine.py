"""What installed packages and visible GPUs tell, on made-up installations and tables."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from overlapkit.doctor import machine
from overlapkit.doctor.machine import Machine, all_connected, look_at_machine
from overlapkit.doctor.packages import (
    Package,
    in_bounds,
    installed_packages,
    package_findings,
    required_versions,
    shadowing_megatron,
    transformer_engine_findings,
)


def found(parts: dict[str, str], torch_cuda: int | None) -> list[str]:
    told = list(transformer_engine_findings(parts, torch_cuda))
    assert all(f.remedy and f.evidence for f in told)
    return [f.id.partition(".")[2] for f in told]


@pytest.mark.parametrize(
    ("parts", "torch_cuda", "expected"),
    [
        ({}, 13, []),
        ({"transformer-engine": "2.8.0"}, 12, []),
        (
            {
                "transformer-engine": "2.8.0",
                "transformer-engine-torch": "2.8.0",
                "transformer-engine-cu12": "2.8.0",
            },
            12,
            [],
        ),
        (
            {"transformer-engine-torch": "2.8.0", "transformer-engine-cu12": "2.8.0"},
            13,
            ["transformer-engine-cuda"],
        ),
        (
            {"transformer-engine-torch": "2.8.0", "transformer-engine-cu13": "2.9.0"},
            13,
            ["transformer-engine-parts"],
        ),
        ({"transformer-engine-cu13": "2.9.0"}, 13, ["transformer-engine-torch"]),
        ({"transformer-engine-torch": "2.8.0+abc", "transformer-engine-cu13": "2.8.0"}, 13, []),
        # A CPU build of torch tells no CUDA release.
        ({"transformer-engine-torch": "2.8.0", "transformer-engine-cu13": "2.8.0"}, None, []),
    ],
)
def test_transformer_engines_parts_must_fit(
    parts: dict[str, str], torch_cuda: int | None, expected: list[str]
) -> None:
    assert found(parts, torch_cuda) == expected


def test_bounds_are_those_of_the_package_itself() -> None:
    bounds = required_versions()
    assert {"torch", "megatron-core", "transformer-engine"} <= bounds.keys()
    assert in_bounds(Package("megatron-core", "0.16.1", bounds["megatron-core"]))
    assert not in_bounds(Package("megatron-core", "0.12.0", bounds["megatron-core"]))
    assert not in_bounds(Package("torch", "2.5.1", bounds["torch"]))
    assert in_bounds(Package("torch", "2.15.0a0+git1", bounds["torch"]))
    assert in_bounds(Package("torch", None, bounds["torch"]))
    assert not in_bounds(Package("torch", "of today", bounds["torch"]))


def test_an_old_package_is_a_finding() -> None:
    packages = installed_packages(lambda *names: "0.1" if "megatron-core" in names else None)
    (finding,) = [f for f in package_findings(packages) if f.id == "packages.megatron-core"]
    assert "0.1" in finding.evidence[0].text and ">=" in finding.remedy


def test_a_megatron_that_hides_the_others(tmp_path: Path) -> None:
    assert shadowing_megatron([str(tmp_path), ""]) is None
    (tmp_path / "megatron").mkdir()
    assert shadowing_megatron([str(tmp_path)]) is None
    (tmp_path / "megatron" / "__init__.py").touch()
    assert shadowing_megatron(["/nonexistent", str(tmp_path)]) == str(
        tmp_path / "megatron" / "__init__.py"
    )


JOINED = """\
\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV18\tPIX\t0-47\t0
GPU1\tNV18\t X \tSYS\t48-95\t1
NIC0\tPIX\tSYS\t X

Legend:
  X    = Self
"""


def test_the_table_of_links() -> None:
    assert all_connected(JOINED, 2) is True
    assert all_connected(JOINED.replace("NV18", "SYS"), 2) is False
    assert all_connected(JOINED.replace("\tNV18\tPIX", "\tPHB\tPIX"), 2) is False
    assert all_connected("no table", 2) is None
    assert all_connected(JOINED, 8) is None


def program(folder: Path, text: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!{os.path.realpath('/bin/sh')}\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_what_nvidia_smi_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look_at_machine() == Machine(summary="no GPU is visible here: nvidia-smi was not found")
    program(
        tmp_path,
        f"""case "$1" in
--query-gpu*) echo "NVIDIA H100 80GB HBM3, 570.86"; echo "NVIDIA H100 80GB HBM3, 570.86" ;;
*) printf '%s' '{JOINED}' ;;
esac""",
    )
    seen = look_at_machine()
    assert (seen.gpus, seen.driver, seen.nvlink) == (("NVIDIA H100 80GB HBM3",) * 2, "570.86", True)
    program(tmp_path, "echo broken driver >&2; exit 9")
    assert "failed: broken driver" in look_at_machine().summary
    program(tmp_path, ":")
    assert "lists none" in look_at_machine().summary


def test_a_stuck_driver_does_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "while :; do :; done")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "LIMIT_S", 0.2)
    assert "did not answer" in look_at_machine().summary
