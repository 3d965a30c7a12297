"""The parts of a Markdown page that a check needs: blocks of code, and the prose around them.

Fences are those of CommonMark 0.31, section 4.5; indented code that of section 4.4; code spans
those of section 6.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_OPENING = re.compile(r"^(?P<before>[ \t>]*(?:[-*+] |\d+[.)] )?[ \t]*)(?P<fence>`{3,}|~{3,})(.*)$")
_ITEM = re.compile(r"^[ ]*(?:[-*+]|\d{1,9}[.)])(?:[ ]{1,4}(?=\S)|[ ]|$)")
"""The beginning of a list's item, up to its content."""
_CODE = 4
"""Blanks before the lines of indented code, beyond those of the list that it is in."""
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r"^ {0,3}(?:=+|-+)[ \t]*$")
_TARGET = re.compile(
    r"""(?:\b(?:id|name)\s*=\s*["']([^"']+)["'])|^\(([\w.:-]+)\)=\s*$|\{#([\w.:-]+)\}""",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Fence:
    """A block of code: fenced, or indented.

    Attributes:
        line: of the opening fence, from 1; of indented code the first line.
        end: of the closing fence, from 1; of the last line where nothing closes it.
        info: what follows the opening fence; empty for indented code.
        body: its lines, without the indentation of the block.
    """

    line: int
    end: int
    info: str
    body: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """A page of Markdown.

    Attributes:
        lines: of the whole text.
        fences: its blocks of code, in order.
        prose: the lines with everything in them, in comments and frontmatter blanked, so that
            lines and columns stay those of the text.
        body: the number of the first line after the frontmatter, from 1.
    """

    lines: tuple[str, ...]
    fences: tuple[Fence, ...]
    prose: tuple[str, ...]
    body: int


def read_page(text: str) -> Page:
    """The parts of a text in Markdown."""
    lines = tuple(text.split("\n"))
    body = _frontmatter_end(lines) + 1
    fenced = list(_fences(lines, body - 1))
    indented = _indented(lines, body - 1, fenced)
    fences = tuple(sorted([*fenced, *indented], key=lambda fence: fence.line))
    prose = list(lines)
    prose[: body - 1] = [""] * (body - 1)
    for fence in fences:
        prose[fence.line - 1 : fence.end] = [""] * (fence.end - fence.line + 1)
    blanked = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), "\n".join(prose))
    return Page(lines, fences, tuple(blanked.split("\n")), body)


def frontmatter(lines: tuple[str, ...]) -> str | None:
    """The YAML between the first two lines of three hyphens; None where the page has none."""
    end = _frontmatter_end(lines)
    return "\n".join(lines[1 : end - 1]) if end else None


def _frontmatter_end(lines: tuple[str, ...]) -> int:
    """The number of the line that ends the frontmatter, from 1; 0 where there is none."""
    if not lines or lines[0].rstrip() != "---":
        return 0
    ends = (n for n, line in enumerate(lines[1:], 2) if line.rstrip() in ("---", "..."))
    return next(ends, 0)


def _fences(lines: tuple[str, ...], first: int) -> Iterator[Fence]:
    number = first
    while number < len(lines):
        opening = _OPENING.match(lines[number].rstrip("\r"))
        # The info string of a fence of backticks has none: it is a code span.
        if opening is None or ("`" in opening[3] and opening["fence"][0] == "`"):
            number += 1
            continue
        closing = re.compile(rf"^[ \t>]*{opening['fence'][0]}{{{len(opening['fence'])},}}[ \t\r]*$")
        end = number + 1
        while end < len(lines) and not closing.match(lines[end]):
            end += 1
        indent = len(opening["before"])
        yield Fence(
            number + 1,
            min(end + 1, len(lines)),
            opening[3].strip(),
            tuple(_without(line.rstrip("\r"), indent) for line in lines[number + 1 : end]),
        )
        number = end + 1


def _indented(lines: tuple[str, ...], first: int, fences: Sequence[Fence]) -> Iterator[Fence]:
    """Indented code: after a blank line, since it cannot interrupt a paragraph."""
    fenced = {n for fence in fences for n in range(fence.line - 1, fence.end)}
    items: list[int] = []
    number, after_blank = first, True
    while number < len(lines):
        line = lines[number].rstrip("\r").expandtabs(_CODE)
        indent = len(line) - len(line.lstrip(" "))
        if number in fenced or not line.strip():
            after_blank = True
            number += 1
            continue
        if after_blank:
            items = [content for content in items if content <= indent]
            least = (items[-1] if items else 0) + _CODE
            if indent >= least:
                last = number
                for end in range(number, len(lines)):
                    text = lines[end].expandtabs(_CODE)
                    if end in fenced or (text.strip() and not text.startswith(" " * least)):
                        break
                    last = end if text.strip() else last
                body = [lines[n].rstrip("\r").expandtabs(_CODE) for n in range(number, last + 1)]
                yield Fence(number + 1, last + 1, "", tuple(text[least:] for text in body))
                number, after_blank = last + 1, False
                continue
        item = _ITEM.match(line)
        if item:
            items = [*(content for content in items if content <= indent), len(item[0])]
        after_blank = False
        number += 1


def _without(line: str, indent: int) -> str:
    """A line without at most so many leading blanks and marks of a block quote."""
    taken = 0
    while taken < min(indent, len(line)) and line[taken] in " \t>":
        taken += 1
    return line[taken:]


def without_code(line: str) -> str:
    """A line of prose with its code spans blanked, their length kept."""
    return _SPAN.sub(lambda m: " " * len(m[0]), line)


def headings(page: Page) -> Iterator[tuple[int, str]]:
    """Line and text of every heading."""
    for number, line in enumerate(page.prose, 1):
        found = _HEADING.match(line.rstrip("\r"))
        if found:
            yield number, found[1]
        elif number > 1 and _UNDERLINE.match(line.rstrip("\r")) and page.prose[number - 2].strip():
            yield number - 1, page.prose[number - 2].strip()


def _shown(text: str) -> str:
    """A heading without the marks of links and HTML; what is in code spans stays as it is."""
    codes: list[str] = []

    def kept(span: re.Match[str]) -> str:
        codes.append(span[2])
        return f"\0{len(codes) - 1}\0"

    plain = _SPAN.sub(kept, text)
    plain = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", plain)
    plain = re.sub(r"<[^>]+>", "", plain)
    return re.sub(r"\0(\d+)\0", lambda m: codes[int(m[1])], plain)


def targets(page: Page) -> set[str]:
    """What a link's fragment can name: headings as GitHub names them, and explicit names.

    GitHub's names are lower case, without punctuation, with a hyphen for each blank; a repeated
    one ends in -1, -2 and so on.
    """
    names: dict[str, int] = {}
    found = set()
    for _, text in headings(page):
        shown = _shown(text)
        name = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.add(f"{name}-{names[name]}" if name in names else name)
        names[name] = names.get(name, 0) + 1
    for groups in _TARGET.findall("\n".join(page.prose)):
        found.add(next(filter(None, groups)))
    return found
