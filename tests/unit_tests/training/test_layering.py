"""What may import what: inside megatron.bridge, and the rules that hold for overlapkit's rooms.

`tests/unit_tests/project/test_layers.py` compares the rooms with the diagram in ARCHITECTURE.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "src"
BRIDGE = ("errors", "utils", "models", "training", "recipes")
"""The parts of megatron.bridge, the lowest first; each imports only those before it."""
COMMANDS = ("explain", "plan", "lab", "trace", "doctor", "skill")
FORBIDDEN = {
    "megatron/bridge": ("overlapkit",),
    "overlapkit/output": tuple(f"overlapkit.{room}" for room in (*COMMANDS, "config")),
    "overlapkit/config": tuple(f"overlapkit.{room}" for room in COMMANDS),
    "overlapkit/trace": ("overlapkit.lab", "torch"),
    "overlapkit/explain": ("torch",),
    "overlapkit/plan": ("torch",),
}


def module_of(path: Path) -> str:
    name = path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def targets(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules that these import statements load."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when the module is imported."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        yield node
        todo += ast.iter_child_nodes(node)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_room_never_imports(folder: str) -> None:
    room = folder.replace("/", ".")
    for module in FILES:
        if inside(module, room):
            loaded = set(targets(ast.walk(tree_of(module))))
            for package in FORBIDDEN[folder]:
                assert not any(inside(target, package) for target in loaded), (module, package)


@pytest.mark.parametrize("part", BRIDGE)
def test_a_part_of_the_implementation_imports_only_those_below_it(part: str) -> None:
    above = BRIDGE[BRIDGE.index(part) + 1 :]
    for module in FILES:
        if inside(module, f"megatron.bridge.{part}"):
            loaded = set(targets(ast.walk(tree_of(module))))
            for other in above:
                package = f"megatron.bridge.{other}"
                assert not any(inside(target, package) for target in loaded), (module, package)


def test_no_module_imports_itself_through_others() -> None:
    imports = {
        module: {t for t in targets(at_import(tree_of(module))) if t in FILES and t != module}
        for module in FILES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in imports[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())
