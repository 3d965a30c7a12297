"""Anchors: a query finds the one place, wherever it has moved, or says that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.skill.anchors.query import find_anchor

SOURCE = """\
TABLE: tuple[int, ...] = (
    1,
    2,
)


class Box:
    @property
    def size(self) -> int:
        if self.full:
            return 1
        for item in self.items:
            if item:
                return 2
        return 0

    def open(self) -> None:
        pass


def open() -> None:
    x = 1
    x = 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "box.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize(
    ("symbol", "inside", "lines"),
    [
        ("TABLE", None, (1, 4)),
        ("Box.size", None, (8, 15)),
        ("Box.size", "for item", (12, 14)),
        ("Box.size", "if self.full", (10, 11)),
        ("Box.open", None, (17, 18)),
    ],
)
def test_found_with_its_lines(
    root: Path, symbol: str, inside: str | None, lines: tuple[int, int]
) -> None:
    anchor = find_anchor(root, "box.py", symbol, inside)
    assert (anchor.start, anchor.end) == lines
    assert anchor.text.splitlines() == SOURCE.splitlines()[lines[0] - 1 : lines[1]]
    assert str(anchor).startswith(f"```{lines[0]}:{lines[1]}:box.py\n")


def test_follows_the_source(root: Path) -> None:
    before = find_anchor(root, "box.py", "Box.size", "for item")
    (root / "box.py").write_text("# one more line\n" + SOURCE)
    after = find_anchor(root, "box.py", "Box.size", "for item")
    assert (after.start, after.text) == (before.start + 1, before.text)


@pytest.mark.parametrize(
    ("symbol", "inside", "problem"),
    [
        ("Nothing", None, "Nothing is found 0 times"),
        ("Box.nothing", None, "found 0 times"),
        ("Box.size", "while", "'while' is found 0 times"),
        ("open", "x = 1", "'x = 1' is found 2 times"),
    ],
)
def test_a_query_without_a_single_match_is_an_error(
    root: Path, symbol: str, inside: str | None, problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as error:
        find_anchor(root, "box.py", symbol, inside)
    assert f"anchor('box.py', '{symbol}'" in str(error.value)


def test_a_file_that_is_not_python_is_an_error(root: Path) -> None:
    (root / "box.py").write_text("def (")
    with pytest.raises(InputError, match=r"box\.py cannot be read as Python"):
        find_anchor(root, "box.py", "Box")
