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

DATA = Path(__file__).parents[1] / "data"
VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NVTE_FWD_LAYERNORM_SM_MARGIN",
    "NVTE_BWD_LAYERNORM_SM_MARGIN",
    "CUDA_LAUNCH_BLOCKING",
    "TORCH_NCCL_BLOCKING_WAIT",
    "NCCL_BLOCKING_WAIT",
)
"""Variables that the rules look at: a test's answer must not depend on who runs it."""


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as one JSON document."""
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded


@pytest.fixture
def overlapkit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """`overlapkit(*arguments)`: status, standard output and standard error of the command."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["overlapkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        written = capsys.readouterr()
        return Result(int(stop.value.code or 0), written.out, written.err)

    return run


@pytest.fixture
def plan(overlapkit: Callable[..., Result]) -> Callable[..., Result]:
    """`plan(*arguments)`: what `overlapkit plan` answers."""
    return lambda *arguments: overlapkit("plan", *arguments)


@pytest.fixture
def doctor(
    overlapkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """`doctor(*arguments)`: what `overlapkit doctor` answers on a machine without a GPU."""
    empty = tmp_path / "no-programs"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    return lambda *arguments: overlapkit("doctor", *arguments)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """`config(text, name)`: a file with this text, by its path."""

    def write(text: str, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def bridge_configs() -> Path:
    """The folder of configurations that Megatron-Bridge wrote."""
    return DATA / "bridge_configs"
