"""Lines on GitHub: examined where they are of the checkout's repository, and said with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.repository import CODE, Repository

Command = Callable[..., Any]
OWN = "https://github.com/Some/Gates/blob"
QUOTE = "\n\n```python\nif config.tp_size < 2:\n```\n"


@pytest.fixture
def own(repository: Repository) -> Repository:
    """The repository of `OWN`: a tag, then a line more at the top of its file."""
    repository.git("remote", "add", "origin", "git@github.com:some/gates.git")
    repository.git("tag", "v1.0")
    repository.write("src/gate.py", f"# a line more\n{CODE}")
    repository.commit()
    return repository


def findings(repository: Repository, overlapkit: Command, text: str) -> list[dict[str, Any]]:
    repository.write("page.md", text)
    document = overlapkit("skill", "check", str(repository.root), "--json").document
    return [finding for file in document["files"] for finding in file["findings"]]


@pytest.mark.parametrize(
    ("ref", "lines", "state", "said"),
    [
        ("v1.0", "#L6", "right", "compared with v1.0"),
        ("v1.0", "#L6-L9", "right", "compared with v1.0"),
        ("v1.0", "#L15-L17", "moved", "the lines stand at 6 in v1.0"),
        ("v1.0", "#L90", "gone", "the file has 17 lines in v1.0"),
        ("main", "#L7", "right", "compared with the checkout's file, not with main"),
        ("main", "#L6", "moved", "the lines stand at 7 now; compared with the checkout's file"),
        ("team/next", "#L7-L9", "right", "not with team/next"),
        ("0123456789abcdef", "#L6", "unknown", "does not have commit 0123456789"),
    ],
)
def test_of_this_repository(
    ref: str, lines: str, state: str, said: str, own: Repository, overlapkit: Command
) -> None:
    text = f"The gate: [here]({OWN}/{ref}/src/gate.py{lines}){QUOTE}"
    (found,) = findings(own, overlapkit, text)
    assert found["state"] == state and said in found["message"]
    assert found["text"] == f"{OWN}/{ref}/src/gate.py{lines}"


def test_a_commit_is_compared_with_what_it_had(own: Repository, overlapkit: Command) -> None:
    for commit, state in (("HEAD", "moved"), ("HEAD~", "right")):
        name = own.git("rev-parse", commit).strip()
        (found,) = findings(own, overlapkit, f"{OWN}/{name}/src/gate.py#L6{QUOTE}")
        assert found["state"] == state


def test_another_file_of_the_repository_is_gone(own: Repository, overlapkit: Command) -> None:
    for ref, said in (("main", "main was not examined"), ("v1.0", "v1.0 has no src/other.py")):
        (found,) = findings(own, overlapkit, f"{OWN}/{ref}/src/other.py#L3\n")
        assert found["state"] == "gone" and said in found["message"]


def test_of_another_repository_nothing_is_said(own: Repository, overlapkit: Command) -> None:
    other = OWN.replace("Gates", "Others")
    text = f"{other}/main/src/gate.py#L6{QUOTE}\n{OWN}/main/src/gate.py\n"
    assert findings(own, overlapkit, text) == []


def test_without_a_remote_a_path_that_is_here_is_examined(
    repository: Repository, overlapkit: Command
) -> None:
    text = f"{OWN}/main/src/gate.py#L4{QUOTE}\n{OWN}/main/src/other.py#L4\n"
    (found,) = findings(repository, overlapkit, text)
    assert found["state"] == "moved" and "not with main" in found["message"]


def test_fix_writes_the_lines_alone_anew(own: Repository, overlapkit: Command) -> None:
    own.write(
        "page.md", f"See {OWN}/v1.0/src/gate.py#L15-L17{QUOTE}\n{OWN}/main/src/gate.py#L6{QUOTE}"
    )
    assert overlapkit("skill", "check", str(own.root), "--fix").status == 0
    text = (own.root / "page.md").read_text(encoding="utf-8")
    assert f"See {OWN}/v1.0/src/gate.py#L6\n" in text
    assert f"\n{OWN}/main/src/gate.py#L7\n" in text


@pytest.mark.parametrize(
    ("url", "is_own"),
    [
        ("https://github.com/some/gates", True),
        ("https://user@github.com/Some/Gates.git", True),
        ("ssh://git@github.com/some/gates.git", True),
        ("https://github.com/fork/gates.git", False),
        ("/srv/some/gates", True),
    ],
)
def test_what_a_remote_tells(
    url: str, is_own: bool, repository: Repository, overlapkit: Command
) -> None:
    # A folder tells nothing: a path that is here is examined then.
    repository.git("remote", "add", "origin", url)
    found = findings(repository, overlapkit, f"{OWN}/main/src/gate.py#L6{QUOTE}")
    assert bool(found) == is_own
