"""Runs the command line in this process, as its entry point does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from overlapkit import cli

CONFIGS = Path(__file__).parents[2] / "data" / "bridge_configs"
LAUNCH_VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NVTE_FWD_LAYERNORM_SM_MARGIN",
    "NVTE_BWD_LAYERNORM_SM_MARGIN",
)


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def overlapkit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """`overlapkit(*arguments)`: status, standard output and standard error of the command."""
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["overlapkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        told = capsys.readouterr()
        return Result(stop.value.code, told.out, told.err)

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """`config(text)`: a file with this text, by its name."""

    def write(text: str, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def bridge_configs() -> Path:
    """The folder of configurations that Megatron-Bridge wrote."""
    return CONFIGS
