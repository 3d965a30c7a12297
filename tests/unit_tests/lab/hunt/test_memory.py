"""What a hunt remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.memory import (
    Memory,
    Tried,
    default_path,
    installed_versions,
    remember,
    remembered,
)


def test_what_was_tried_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "memory.json"
    memory = remembered(path)
    memory.seeds.append(7)
    memory.tried.append(Tried(case=Case(pp=2, vpp=2), kind="equal"))
    remember(path, memory)
    again = remembered(path)
    assert again == memory and again.pairs()[("pp", 2), ("vpp", 2)] == 1
    assert [one.name for one in path.parent.iterdir()] == ["memory.json"]


def test_other_versions_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    old = Memory(versions={"torch": "1.0"}, seeds=[1], tried=[Tried(case=Case(), kind="equal")])
    remember(path, old)
    assert remembered(path) == Memory(versions=installed_versions())


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text('{"tried": [{"case": {"tp": "two"}}]}')
    with pytest.raises(InputError, match=r"memory\.json.*--memory"):
        remembered(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--memory"):
        remember(tmp_path / "file" / "memory.json", Memory(versions={}))


def test_the_default_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "overlapkit" / "lab-hunt.json"
