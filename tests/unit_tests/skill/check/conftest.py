"""A repository with a history, made in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.repository import CODE, Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with `src/gate.py`, committed."""
    root = tmp_path / "repository"
    root.mkdir()
    made = Repository(root)
    made.write("src/gate.py", CODE)
    made.commit()
    return made


@pytest.fixture
def states(repository: Repository, overlapkit: Callable[..., Any]) -> Callable[..., list[str]]:
    """`states(*options)`: kind and state of all that is found in the repository's pages."""

    def found(*options: str) -> list[str]:
        root = str(repository.root)
        document = overlapkit("skill", "check", root, "--json", *options).document
        return [f["state"] for file in document["files"] for f in file["findings"]]

    return found
