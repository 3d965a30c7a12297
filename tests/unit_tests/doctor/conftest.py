"""Runs the command line in this process, as its entry point does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from overlapkit import cli

VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NVTE_FWD_LAYERNORM_SM_MARGIN",
    "NVTE_BWD_LAYERNORM_SM_MARGIN",
    "CUDA_LAUNCH_BLOCKING",
    "TORCH_NCCL_BLOCKING_WAIT",
    "NCCL_BLOCKING_WAIT",
)


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded


@pytest.fixture
def doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Result]:
    """`doctor(*arguments)`: what `overlapkit doctor` answers on a machine without a GPU."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    empty = tmp_path / "no-programs"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["overlapkit", "doctor", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        told = capsys.readouterr()
        return Result(stop.value.code, told.out, told.err)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write(text, name)`: a file with this text, by its name."""

    def make(text: str, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make
