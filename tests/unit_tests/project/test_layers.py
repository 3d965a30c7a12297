"""The imports in the source are those that ARCHITECTURE.md draws."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "src"
DRAWN = re.findall(r"^ +(\w+) --> (\w+)$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
FILES = sorted(SOURCE.rglob("*.py"))
LARGEST_FOLDER = 20


def _room(module: str) -> str | None:
    """The node of the diagram that a module belongs to; None for other packages."""
    parts = module.split(".")
    if parts[0] == "overlapkit":
        return parts[1] if len(parts) > 1 else None
    if parts[:2] == ["megatron", "bridge"]:
        return "bridge"
    return "core" if parts[0] == "torch" or parts[:2] == ["megatron", "core"] else None


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            if node.module == "overlapkit":
                yield from (f"overlapkit.{alias.name}" for alias in node.names)


def _reached(start: str) -> set[str]:
    reached: set[str] = set()
    todo = [start]
    while todo:
        here = todo.pop()
        for target in (b for a, b in DRAWN if a == here and b not in reached):
            reached.add(target)
            todo.append(target)
    return reached


def _rooms() -> set[str]:
    names = (path.relative_to(SOURCE).with_suffix("").as_posix() for path in FILES)
    return {room for name in names if (room := _room(name.replace("/", ".")))} - {"__init__"}


def test_every_room_is_drawn() -> None:
    assert _rooms() | {"core"} == {name for edge in DRAWN for name in edge}


def test_nothing_imports_in_a_circle() -> None:
    assert all(name not in _reached(name) for edge in DRAWN for name in edge)


@pytest.mark.parametrize("room", sorted(_rooms() - {"bridge"}))
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    below = _reached(room)
    for path in FILES:
        name = path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")
        if _room(name) == room:
            rooms = {r for module in _imports(path) if (r := _room(module)) in _rooms() | {"core"}}
            assert rooms - {room} <= below, path


def test_the_implementation_imports_no_toolkit() -> None:
    for path in (SOURCE / "megatron").rglob("*.py"):
        assert not any(module.split(".")[0] == "overlapkit" for module in _imports(path)), path


def test_no_folder_is_crowded() -> None:
    for folder in {path.parent for path in FILES}:
        assert len(list(folder.glob("*.py"))) <= LARGEST_FOLDER, folder
