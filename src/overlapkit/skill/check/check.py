"""Checks pages of Markdown against a checkout."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from overlapkit.errors import InputError
from overlapkit.input_file import read_input
from overlapkit.output.files import Output
from overlapkit.skill.check.anchors import AnchorJudge
from overlapkit.skill.check.checkout import MOST_BYTES, Checkout, files_below
from overlapkit.skill.check.counts import judge_promise, promises
from overlapkit.skill.check.finding import Finding, State
from overlapkit.skill.check.frontmatter import is_skill, judge_frontmatter
from overlapkit.skill.check.git import Git
from overlapkit.skill.check.links import judge_link, links
from overlapkit.skill.check.markdown import Page, read_page
from overlapkit.skill.check.references import references

MARKDOWN = (".md", ".mdx", ".markdown")
_MARK = "\ufeff"
"""The byte order mark that some editors begin a file with."""


@dataclass(frozen=True)
class CheckedPage:
    """A page and what was found on it.

    Attributes:
        file: as it was found.
        findings: in order of their lines.
        fixed: how many of them were put right in the file.
    """

    file: str
    findings: tuple[Finding, ...]
    fixed: int = 0


@dataclass(frozen=True)
class Checked:
    """The answer on all pages.

    Attributes:
        root: the checkout, as it was named.
        pages: those with an anchor, a link or frontmatter, in order of their names.
    """

    root: str
    pages: tuple[CheckedPage, ...]

    @cached_property
    def states(self) -> Counter[tuple[str, State]]:
        """How many findings there are of each kind and state."""
        return Counter((f.kind, f.state) for page in self.pages for f in page.findings)

    @property
    def fails(self) -> bool:
        """Whether a page is wrong about something."""
        return any(f.is_drift for page in self.pages for f in page.findings)


def check(
    paths: Sequence[str], root: str | None, *, fix: bool = False, collect: bool = False
) -> Checked:
    """Check the pages at these paths against a checkout.

    Args:
        paths: pages, and folders with them.
        root: the checkout; None for the repository of the first path.
        fix: whether anchors whose lines stand elsewhere are written anew.
        collect: whether promised numbers of tests are compared with what pytest collects.

    Raises:
        InputError: a path or the checkout cannot be read, or a page cannot be written.
    """
    files = list(_pages(paths))
    name = root if root is not None else _repository(files[0] if files else paths[0])
    checkout = Checkout(name)
    checked = [_check_page(file, checkout, fix=fix, collect=collect) for file in files]
    return Checked(name, tuple(page for page in checked if page.findings))


def _repository(path: str) -> str:
    folder = os.path.dirname(os.path.realpath(path))  # noqa: PTH120
    git = Git(Path(folder))
    return str(git.root) if git.root is not None else os.curdir


def _check_page(file: str, checkout: Checkout, *, fix: bool, collect: bool) -> CheckedPage:
    text = _text(file)
    findings = judge(text, Path(os.path.realpath(file)), checkout, collect=collect)
    edits = [each.edit for each in findings if each.edit is not None]
    if not fix or not edits:
        return CheckedPage(file, tuple(findings))
    lines = text.split("\n")
    # From the right, so that the columns of the others in the line stay.
    for edit in sorted(edits, key=lambda each: (each.line, each.column), reverse=True):
        line = lines[edit.line - 1]
        assert line.startswith(edit.old, edit.column), "an edit is of what was read"
        lines[edit.line - 1] = line[: edit.column] + edit.new + line[edit.column + len(edit.old) :]
    Output("--fix", os.path.realpath(file)).write("\n".join(lines))
    fixed = tuple(
        replace(f, state="right", message=f"{f.message}; written anew as {f.edit.new}")
        if f.edit is not None
        else f
        for f in findings
    )
    return CheckedPage(file, fixed, len(edits))


def judge(text: str, file: Path, checkout: Checkout, *, collect: bool = False) -> list[Finding]:
    """What is found on a page, in order of the lines.

    Args:
        text: of the page.
        file: its file, with links resolved.
        checkout: what it is checked against.
        collect: see `check`.
    """
    page = read_page(text.removeprefix(_MARK))
    findings = list(_anchors_and_links(page, file, checkout))
    if is_skill(file):
        findings += judge_frontmatter(page, file)
    if collect:
        findings += (judge_promise(promise, checkout.root) for promise in promises(page))
    return sorted(findings, key=lambda each: each.line)


def _anchors_and_links(page: Page, file: Path, checkout: Checkout) -> Iterator[Finding]:
    anchors = AnchorJudge(checkout, file)
    found = references(page, checkout.has)
    judged = (anchors.judge(reference) for reference in found)
    yield from (finding for finding in judged if finding is not None)
    named = {(each.line, each.path) for each in found}
    for link in links(page):
        # A link to lines of a file is an anchor as well: one answer is enough.
        if (link.line, link.text.partition("#")[0]) not in named:
            yield judge_link(link, page, file, checkout.root)


def _text(file: str) -> str:
    raw = read_input(file, "Markdown page", most=MOST_BYTES)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{line}: is not UTF-8 text; name a Markdown page") from None


def _pages(paths: Sequence[str]) -> Iterator[str]:
    """The pages at the paths, each once, in order of their names within each path."""
    seen: set[str] = set()
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - a name that no Path takes is no folder
            found = _below(path)
        elif os.path.lexists(path):
            found = [path]
        else:
            raise InputError(f"{path}: no such file or folder; name a page or a folder")
        for file in found:
            real = os.path.realpath(file)
            if real not in seen:
                seen.add(real)
                yield file


def _below(folder: str) -> list[str]:
    """The pages below a folder that git does not ignore."""
    place = Path(folder)
    names = files_below(place, Git(place))
    pages = (place / name for name in names if name.lower().endswith(MARKDOWN))
    return [str(page) for page in pages if page.is_file()]
