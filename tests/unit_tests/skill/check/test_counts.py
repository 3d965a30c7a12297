"""Promised numbers of passing tests against what pytest really collects."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlapkit.skill.check.counts import promises
from overlapkit.skill.check.markdown import read_page
from support.repository import Repository

TESTS = "import pytest\n\n@pytest.mark.parametrize('n', range(3))\ndef test_it(n):\n    pass\n"


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python is found as `python`."""
    tools = tmp_path / "tools"
    tools.mkdir()
    program = tools / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("`python -m pytest tests/test_x.py -q` reports `3 passed`", "right"),
        ("`python -m pytest tests/test_x.py -q` reports `26 passed`", "changed"),
        ("`python -m pytest tests/test_x.py -k '0 or 1'` reports 2 passed", "right"),
        ("`python -m pytest tests/no.py` reports 2 passed", "unknown"),
        ("`rm -rf x; sudo python -m pytest` reports 2 passed", "unknown"),
        ("It says 2 passed.", "unknown"),
    ],
)
def test_collected(
    text: str, state: str, repository: Repository, overlapkit: Callable[..., Any], python: None
) -> None:
    repository.write("tests/test_x.py", TESTS)
    repository.write("page.md", text + "\n")
    root = str(repository.root)
    document = overlapkit("skill", "check", root, "--collect", "--json").document
    assert [f["state"] for file in document["files"] for f in file["findings"]] == [state]
    assert overlapkit("skill", "check", root).out.startswith("no anchor"), "only on request"


def test_the_command_that_a_section_means() -> None:
    page = read_page(
        "# Verification\n\n```bash\nuv run python -m pytest a.py -q && \\\n"
        'uv run python -m pytest b.py -k "x or y"\n```\n\n'
        "- first command reports `8 passed`\n- second command reports `14 passed`\n"
        "- the third command reports `2 passed`\n\n# Other\n\n`pytest c.py`\n\nThen 1 passed.\n"
    )
    meant = [(p.number, p.command and p.command[-1]) for p in promises(page)]
    assert meant == [(8, "-q"), (14, "x or y"), (2, None), (1, "c.py")]
