"""The command: its forms, its exit status, and this repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from overlapkit.output.schema import json_schema
from overlapkit.skill.check.finding import UNCOMPARED
from overlapkit.skill.render import SKILL, find_root
from support.repository import CODE, Repository

Command = Callable[..., Any]
ROOT = find_root(str(Path(__file__).parent))
PAGE = """\
[x](missing.md)

```7:9:src/gate.py
        if config.tp_size < 2:
            ...
            return False
```
"""


@pytest.fixture
def drifted(repository: Repository) -> str:
    """A repository whose page has an anchor that moved and a link that leads nowhere."""
    repository.write("page.md", PAGE)
    return str(repository.root)


def test_this_repository_is_right(overlapkit: Command) -> None:
    done = overlapkit("skill", "check", str(ROOT))
    assert done.status == 0, done.out
    assert "anchors: " in done.out


def test_a_drifted_copy_is_not(tmp_path: Path, overlapkit: Command) -> None:
    for name in (SKILL, "src/megatron"):
        shutil.copytree(ROOT / name, tmp_path / name)
    gate = tmp_path / "src/megatron/bridge/training/rules/tensor.py"
    gate.write_text("#\n" + gate.read_text(encoding="utf-8"), encoding="utf-8")
    skill = str(tmp_path / SKILL / "SKILL.md")
    assert overlapkit("skill", "check", skill, "--root", str(tmp_path)).status == 1
    assert overlapkit("skill", "check", skill, "--root", str(tmp_path), "--fix").status == 0
    assert overlapkit("skill", "check", skill, "--root", str(tmp_path)).status == 0


def test_text(drifted: str, overlapkit: Command) -> None:
    done = overlapkit("skill", "check", drifted)
    assert done.status == 1
    assert done.out.splitlines() == [
        f"{drifted}/page.md:1: link missing.md: gone: no such file",
        f"{drifted}/page.md:3: anchor 7:9:src/gate.py: moved: the lines stand at 6-8 now",
        "1 anchor: 1 moved; 1 relative link: 1 gone",
    ]


def test_everything_is_named_where_asked_and_what_was_not_compared_is_counted(
    repository: Repository, overlapkit: Command
) -> None:
    repository.write("page.md", PAGE.replace("7:9:", "6:8:") + "\nSee src/gate.py:7.\n")
    page = f"{repository.root}/page.md"
    done = overlapkit("skill", "check", str(repository.root), "--all")
    assert done.status == 1
    assert done.out.splitlines() == [
        f"{page}:1: link missing.md: gone: no such file",
        f"{page}:3: anchor 6:8:src/gate.py: right",
        f"{page}:9: anchor src/gate.py:7: right: {UNCOMPARED}",
        "2 anchors: 2 right (1 without anything to compare); 1 relative link: 1 gone",
    ]


def test_fix_leaves_what_it_cannot_mend(drifted: str, overlapkit: Command) -> None:
    done = overlapkit("skill", "check", drifted, "--fix")
    assert done.status == 1
    assert "written anew as 6:8:src/gate.py" in done.out
    assert Path(drifted, "page.md").read_text() == PAGE.replace("7:9:", "6:8:")


def test_fix_keeps_line_ends_and_the_rest(repository: Repository, overlapkit: Command) -> None:
    page = repository.root / "page.md"
    page.write_bytes(("\ufeff" + PAGE).replace("\n", "\r\n").encode())
    overlapkit("skill", "check", str(page), "--fix")
    assert page.read_bytes() == (
        ("\ufeff" + PAGE.replace("7:9:", "6:8:")).replace("\n", "\r\n").encode()
    )


def test_json_is_as_its_schema_says(drifted: str, overlapkit: Command) -> None:
    done = overlapkit("skill", "check", drifted, "--json")
    assert done.status == 1
    jsonschema.validate(done.document, json_schema("skill-check"))
    (file,) = done.document["files"]
    link, anchor = file["findings"]
    assert anchor["place"] == {"path": "src/gate.py", "start": 6, "end": 8}
    assert anchor["replacement"] == "6:8:src/gate.py"
    assert link["place"] is None and done.document["drift"] == 2


def test_annotations(drifted: str, overlapkit: Command) -> None:
    lines = overlapkit("skill", "check", drifted, "--format", "github").out.splitlines()
    assert [line.partition("::")[2].partition(" ")[0] for line in lines] == ["error", "error"]
    assert all(f"file={drifted}/page.md,line=" in line for line in lines)


def test_sarif(drifted: str, overlapkit: Command) -> None:
    log = json.loads(overlapkit("skill", "check", drifted, "--format", "sarif").out)
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    ids = [rules[result["ruleIndex"]]["id"] for result in run["results"]]
    assert ids == [result["ruleId"] for result in run["results"]]
    assert ids == ["skill.link-gone", "skill.anchor-moved"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no-such"], "no-such: no such file or folder"),
        ([".", "--root", "no-such"], "--root no-such: is not a folder"),
        ([".", "--root", "page.md"], "--root page.md: is not a folder"),
        (["latin.md"], "latin.md:2: is not UTF-8 text"),
        (["../repository", "--root", "\0"], "cannot be read"),
    ],
)
def test_bad_input(
    arguments: list[str],
    problem: str,
    drifted: str,
    monkeypatch: pytest.MonkeyPatch,
    overlapkit: Command,
) -> None:
    monkeypatch.chdir(drifted)
    Path("latin.md").write_bytes(b"a\n\xe4\n")
    if "latin.md" not in arguments:
        Path("latin.md").unlink()
    done = overlapkit("skill", "check", *arguments)
    assert done.status == 2 and done.out == ""
    assert problem in done.err and len(done.err.splitlines()) == 1


def test_a_page_outside_of_the_checkout(
    tmp_path: Path, repository: Repository, overlapkit: Command
) -> None:
    page = tmp_path / "skill.md"
    page.write_text("[x](missing.md) and src/gate.py:99\n")
    done = overlapkit("skill", "check", str(page), "--root", str(repository.root), "--json")
    found = [f["state"] for file in done.document["files"] for f in file["findings"]]
    assert "gone" in found and found.count("gone") == 2


def test_nothing_of_a_checkout_is_run(repository: Repository, overlapkit: Command) -> None:
    mark = repository.root.parent / "was-run"
    hook = repository.write("hook.sh", f"#!/bin/sh\ntouch '{mark}'\n")
    hook.chmod(0o755)
    repository.write("page.md", "src/gate.py:3\n")
    repository.commit()
    repository.git("config", "core.fsmonitor", str(hook))
    repository.git("config", "diff.external", str(hook))
    repository.write("src/gate.py", "#\n" + CODE)
    overlapkit("skill", "check", str(repository.root))
    assert not mark.exists()
