"""Of the lab's modules only those of `rank/`, which run in ranks, import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlapkit.lab

LAB = Path(overlapkit.lab.__file__).parent
HEAVY = ("torch", "megatron.core", "transformer_engine", "nemo_run", "pyroute2")
"""What a command that starts, supervises or judges ranks does not import."""


def imported_at_top(file: Path) -> Iterator[str]:
    """Modules that a file imports when it is itself imported: not those within its functions."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def imports(file: Path, package: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for name in imported_at_top(file))


def module(file: Path) -> str:
    parts = file.relative_to(LAB.parents[1]).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


RANK = sorted((LAB / "rank").rglob("*.py"))
OTHERS = sorted(set(LAB.rglob("*.py")) - set(RANK))


def test_ranks_import_torch() -> None:
    """The search finds such imports where they are."""
    assert {file.name for file in RANK if imports(file, "torch")} >= {"block.py", "trainer.py"}
    assert [file for file in RANK if imports(file, "megatron.core")]


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: str(file.relative_to(LAB)))
def test_nothing_but_ranks_imports_torch(file: Path) -> None:
    assert [package for package in HEAVY if imports(file, package)] == []


def test_importing_the_lab_loads_none_of_it() -> None:
    """Neither directly nor through other modules."""
    names = [module(file) for file in OTHERS]
    code = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
