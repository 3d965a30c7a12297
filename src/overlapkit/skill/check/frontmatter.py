"""The frontmatter of a SKILL.md against the specification of agentskills.io.

Fields and limits: agentskills.io/specification, section "SKILL.md format", read in 2026-08.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overlapkit.skill.check.finding import Finding, State
from overlapkit.skill.check.markdown import Page, frontmatter

FIELDS = ("name", "description", "license", "compatibility", "metadata", "allowed-tools")
LONGEST_NAME = 64
LONGEST_DESCRIPTION = 1024
LONGEST_COMPATIBILITY = 500


def is_skill(file: Path) -> bool:
    """Whether a page is the entry of a skill."""
    return file.name in ("SKILL.md", "skill.md")


def judge_frontmatter(page: Page, file: Path) -> Iterator[Finding]:
    """What the specification does not allow, or one answer that all is well.

    Args:
        page: the SKILL.md.
        file: its file: the folder's name is the skill's.
    """
    text = frontmatter(page.lines)
    if text is None:
        yield _finding(1, "wrong", "", "no frontmatter: it starts and ends with a line ---")
        return
    import yaml

    try:
        # Every value as the text that it is: the specification knows texts and mappings of them.
        loaded = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark else 1
        problem = getattr(error, "problem", None) or "cannot be read"
        yield _finding(line, "wrong", "", f"the frontmatter is not YAML: {problem}")
        return
    if not isinstance(loaded, dict):
        yield _finding(1, "wrong", "", "the frontmatter is not a mapping of fields to values")
        return
    findings = list(_fields(page, loaded, file))
    yield from findings
    if not any(each.is_drift for each in findings):
        yield _finding(1, "right", "frontmatter", "")


def _fields(page: Page, loaded: dict[Any, Any], file: Path) -> Iterator[Finding]:
    for field, problem in _problems(loaded, file):
        yield _finding(_line(page, field), "wrong", field, problem)
    for field in loaded:
        if field not in FIELDS:
            line = _line(page, str(field))
            yield _finding(line, "note", str(field), "not a field of the specification")


def _problems(loaded: dict[Any, Any], file: Path) -> Iterator[tuple[str, str]]:
    name = loaded.get("name")
    if not isinstance(name, str) or not name.strip():
        yield "name", "missing; a text is required"
    else:
        yield from (("name", problem) for problem in _name_problems(name, file))
    limits = (
        ("description", LONGEST_DESCRIPTION, True),
        ("compatibility", LONGEST_COMPATIBILITY, False),
    )
    for field, most, required in limits:
        value = loaded.get(field)
        if field not in loaded and not required:
            continue
        if not isinstance(value, str) or not value.strip():
            yield field, "missing; a text is required" if required else "is not a text"
        elif len(value) > most:
            yield field, f"has {len(value)} characters; {most} are allowed"
    for field in ("license", "allowed-tools"):
        if field in loaded and not isinstance(loaded[field], str):
            yield field, "is not a text"
    metadata = loaded.get("metadata", {})
    if not isinstance(metadata, dict):
        yield "metadata", "is not a mapping"
    elif not all(isinstance(k, str) and isinstance(v, str) for k, v in metadata.items()):
        yield "metadata", "has a key or a value that is not a text"


def _name_problems(name: str, file: Path) -> Iterator[str]:
    plain = unicodedata.normalize("NFKC", name)
    if len(plain) > LONGEST_NAME:
        yield f"has {len(plain)} characters; {LONGEST_NAME} are allowed"
    if plain != plain.lower() or not all(c.isalnum() or c == "-" for c in plain):
        yield "has other characters than lower-case letters, digits and hyphens"
    if plain.startswith("-") or plain.endswith("-") or "--" in plain:
        yield "starts or ends with a hyphen, or has two in a row"
    folder = unicodedata.normalize("NFKC", file.parent.name)
    if folder and plain != folder:
        yield f"is {plain}, and the folder's name is {folder}"


def _line(page: Page, field: str) -> int:
    starts = (f"{field}:", f'"{field}":', f"'{field}':")
    head = enumerate(page.lines[: page.body - 1], 1)
    return next((n for n, line in head if line.startswith(starts)), 1)


def _finding(line: int, state: State, text: str, message: str) -> Finding:
    return Finding(line, "frontmatter", state, text or "frontmatter", message)
