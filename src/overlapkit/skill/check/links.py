"""The relative links of a page, and whether what they lead to exists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from overlapkit.skill.check.finding import Finding
from overlapkit.skill.check.markdown import Page, read_page, targets, without_code

_INLINE = re.compile(
    r"\]\(\s*(?:<([^<>\n]*)>|((?:[^\s()<>]|\([^\s()]*\))+))(?:\s+[\"'(][^)]*)?\s*\)"
)
_DEFINITION = re.compile(r"^ {0,3}\[(?!\^)[^\]]+\]:[ \t]*(?:<([^<>\n]*)>|(\S+))")
_MENTION = re.compile(
    r"(?<![\w`/@.])@((?:[\w.-]+/)+[\w.-]*\w\.(?:md|mdx|yaml|yml|json|toml|py|sh|txt))\b"
)
_SCHEME = re.compile(r"^(?:[a-zA-Z][\w+.-]*:|//)")
_PLACEHOLDER = re.compile(r"[{}*$]")
_LINES = re.compile(r"^L\d+(?:-L?\d+)?$")
_MARKDOWN = (".md", ".mdx", ".markdown")


@dataclass(frozen=True)
class Link:
    """A relative link.

    Attributes:
        line: of the page, from 1.
        text: the target as written.
        from_root: whether it is a mention, ``@path``, which agents read from the root as well.
    """

    line: int
    text: str
    from_root: bool = False


def links(page: Page) -> Iterator[Link]:
    """The links of a page that lead to a file, or to a heading of a page."""
    for number, line in enumerate(page.prose, 1):
        plain = without_code(line)
        for pattern in (_INLINE, _DEFINITION):
            for angled, bare in pattern.findall(plain):
                target = angled or bare
                if target and not _SCHEME.match(target) and not _PLACEHOLDER.search(target):
                    yield Link(number, target)
        for target in _MENTION.findall(plain):
            yield Link(number, target, from_root=True)


def judge_link(link: Link, page: Page, file: Path, root: Path) -> Finding:
    """Whether a link leads to something.

    Args:
        link: the link.
        page: the page that it is on.
        file: the page's file, with links resolved.
        root: of the checkout: a link that leads out of it is not examined.
    """
    name, _, fragment = link.text.partition("#")
    name = unquote(name.partition("?")[0])
    fragment = unquote(fragment)
    written = f"@{link.text}" if link.from_root else link.text
    if not name:
        known = not fragment or fragment in targets(page) or fragment == "top"
        return _answer(link, written, known, f"no heading has the name {fragment}")
    starts = [root] if name.startswith("/") else [file.parent, *([root] if link.from_root else [])]
    tried = [Path(os.path.normpath(start / name.lstrip("/"))) for start in starts]
    # MyST takes the name of a page without its ending.
    tried += [path.with_name(f"{path.name}.md") for path in tried if not path.suffix]
    found = next((path for path in tried if _exists(path)), None)
    if found is None:
        if name.startswith("/"):
            return Finding(link.line, "link", "unknown", written, "starts at the root of a site")
        inside = tried[0].is_relative_to(root) or not file.is_relative_to(root)
        if not inside:
            return Finding(link.line, "link", "unknown", written, "leads out of the checkout")
        return _answer(link, written, False, "no such file")
    if not fragment or _LINES.match(fragment) or found.suffix.lower() not in _MARKDOWN:
        return _answer(link, written, True, "")
    problem = f"no heading of the page has the name {fragment}"
    return _answer(link, written, fragment in _targets_in(found), problem)


def _answer(link: Link, written: str, right: bool, problem: str) -> Finding:
    if right:
        return Finding(link.line, "link", "right", written, "")
    return Finding(link.line, "link", "gone", written, problem)


def _exists(path: Path) -> bool:
    # Path.exists raises for a name that is too long or contains a NUL.
    return os.path.exists(path)  # noqa: PTH110


@cache
def _targets_in(path: Path) -> set[str]:
    try:
        return targets(read_page(path.read_text(encoding="utf-8-sig", errors="replace")))
    except OSError:
        return set()
