"""Relative links, and the frontmatter of a SKILL.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.repository import Repository

Command = Callable[..., Any]
GOOD = "---\nname: my-skill\ndescription: What it does.\n---\n# Title\n"


def findings(overlapkit: Command, root: Path) -> list[tuple[str, str, str]]:
    document = overlapkit("skill", "check", str(root), "--json").document
    return [
        (f["kind"], f["state"], f["text"]) for file in document["files"] for f in file["findings"]
    ]


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("[x](other.md)", "right"),
        ("[x](other.md#a-heading)", "right"),
        ("[x](other.md#a-heading-1)", "right"),
        ("[x](other.md#a-heading-2)", "gone"),
        ("[x](other.md#no-heading)", "gone"),
        ("[x](<other.md> 'title')", "right"),
        ("[x](/other.md)", "right"),
        ("[x](/other-site-page)", "unknown"),
        ("[x](#callsome-more)\n\n# `call(some[, more])`", "right"),
        ("![x](missing.png)", "gone"),
        ("[x]: missing.md", "gone"),
        ("[x](sub/)", "right"),
        ("[x](other#a-heading)", "right"),
        ("@sub/card.yaml", "right"),
        ("- @sub/missing.yaml", "gone"),
        ("[x](../../issues)", "unknown"),
        ("# Here\n\n[x](#here)", "right"),
        ("[x](#nowhere)", "gone"),
    ],
)
def test_links(text: str, state: str, repository: Repository, overlapkit: Command) -> None:
    repository.write("other.md", "# A `heading`!\n\nA heading\n---------\n")
    repository.write("sub/card.yaml", "a: 1\n")
    repository.write("page.md", text + "\n")
    assert [s for _, s, _ in findings(overlapkit, repository.root)] == [state]


@pytest.mark.parametrize(
    "text",
    [
        "[x](https://example.com)",
        "[x](mailto:a@b.c)",
        "`[x](no.md)`",
        "```\n[x](no.md)\n```",
        "a@b/c.md",
    ],
)
def test_what_is_no_relative_link(text: str, repository: Repository, overlapkit: Command) -> None:
    repository.write("page.md", text + "\n")
    assert findings(overlapkit, repository.root) == []


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("name: my-skill", "name: other-skill", "name"),
        ("name: my-skill", "name: My_Skill", "name"),
        ("name: my-skill", f"name: {'a' * 65}", "name"),
        ("name: my-skill\n", "", "name"),
        ("What it does.", "x" * 1025, "description"),
        ("What it does.", "", "description"),
        ("What it does.", "knobs: and more", "frontmatter"),
        ("---\n# Title", f"compatibility: {'x' * 501}\n---\n# Title", "compatibility"),
        ("---\n# Title", "metadata: [a]\n---\n# Title", "metadata"),
        ("---\n# Title", "allowed-tools: [Read]\n---\n# Title", "allowed-tools"),
        (GOOD, "# Title\n", "frontmatter"),
    ],
)
def test_frontmatter_that_the_specification_does_not_allow(
    old: str, new: str, field: str, repository: Repository, overlapkit: Command
) -> None:
    assert old in GOOD
    repository.write("skills/my-skill/SKILL.md", GOOD.replace(old, new))
    found = findings(overlapkit, repository.root)
    assert ("frontmatter", "wrong", field) in found
    assert all(text == field for _, state, text in found if state == "wrong")


def test_frontmatter_that_it_allows(repository: Repository, overlapkit: Command) -> None:
    more = "license: MIT\nmetadata:\n  version: 1.0\nwhen_to_use: always\n---\n# Title"
    repository.write("skills/my-skill/SKILL.md", GOOD.replace("---\n# Title", more))
    assert sorted(findings(overlapkit, repository.root)) == [
        ("frontmatter", "note", "when_to_use"),
        ("frontmatter", "right", "frontmatter"),
    ]
    assert overlapkit("skill", "check", str(repository.root)).status == 0
