"""Runs the command line in this process, as its entry point does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from overlapkit import cli


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """`plan(*arguments)`: status, standard output and standard error of the command."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["overlapkit", "plan", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        told = capsys.readouterr()
        return Result(int(stop.value.code or 0), told.out, told.err)

    return run
