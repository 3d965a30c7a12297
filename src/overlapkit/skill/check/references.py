"""The anchors on a page: places in a checkout that it names by file and line.

The forms are a fence with ``START:END:path`` or one of the others in its info string, and in
prose ``path:LINE``, ``path:START-END``, ``path#L10`` and ``path#L10-L20``, and such lines of a file
on GitHub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from overlapkit.skill.check.address import ADDRESS, Address, address_of
from overlapkit.skill.check.markdown import Fence, Page

_FENCE = re.compile(r"(?:^|\s)(?P<start>\d+):(?P<end>\d+):(?P<path>[^\s{}]*[a-zA-Z_][^\s{}]*)")
_PATH = r"(?P<path>(?:\.{0,2}/)?(?:[\w.+@~-]+/)*[\w.+-]*\w)"
_PLACE = re.compile(
    rf"(?<![\w/.@:-]){_PATH}"
    r"(?:(?P<colon>:)(?P<start>\d+)(?:(?P<dash>[-\u2013])(?P<end>\d+))?(?::\d+)?"
    r"|(?P<hash>#L)(?P<start2>\d+)(?:C\d+)?(?:(?P<dash2>-)(?P<l2>L?)(?P<end2>\d+)(?:C\d+)?)?)"
    r"(?![\w/]|[.:-]\d|:[a-zA-Z])"
)
_URL = re.compile(r"\b[a-zA-Z][\w+.-]*://[^\s<>\"')\]]+")

_TEXT_FILE = re.compile(
    r"\.(?:py[ix]?|ipynb|mdx?|markdown|rst|txt|j2|jinja|ya?ml|toml|cfg|ini|conf|jsonl?|xml|html|css"
    r"|(?:ba|z)?sh|slurm|sbatch|ps1|mk|cmake|bzl|c|cc|cpp|cxx|cuh?|h|hh|hpp|hxx|inl|mm?|f|f90|rs|go"
    r"|java|kt|scala|[cm]?[jt]s|[jt]sx|vue|rb|php|pl|lua|swift|r|jl|sql|proto|tf|diff|patch)$",
    re.IGNORECASE,
)
"""Ends of names of text files: `example.com:443` is no place in a file."""


@dataclass(frozen=True)
class Reference:
    """A place in a checkout that a page names.

    Attributes:
        line: where it stands on the page, from 1.
        column: its first character in that line, from 0.
        text: how it is written.
        path: the file, as written.
        start, end: the lines, from 1, both included.
        quote: the lines that are quoted with it; None where none are.
        surely: whether `quote` is part of the anchor; else the block only follows it.
        write: the text for another place: `write(path, start, end)`.
        address: for lines on GitHub, what is named; `path` is then a ref and a path.
    """

    line: int
    column: int
    text: str
    path: str
    start: int
    end: int
    quote: tuple[str, ...] | None
    surely: bool
    write: Callable[[str, int, int], str]
    address: Address | None = None


def references(page: Page, exists: Callable[[str], bool]) -> list[Reference]:
    """Every anchor of a page, in order.

    Args:
        page: the page.
        exists: whether a name is that of a file; then it is one whatever its ending.
    """
    found = [each for fence in page.fences for each in _of_fence(page, fence, exists)]
    blocks = {fence.line: fence for fence in page.fences if not fence.info.count(":")}
    for number, line in enumerate(page.prose, 1):
        here = [*_in_text(line, exists), *ADDRESS.finditer(line)]
        for match in here:
            # A block right after a line that ends with its only anchor shows the lines.
            rest = line[match.end() :].strip(" \t\r`)*:.,]")
            block = blocks.get(number + 1) or blocks.get(number + 2) if len(here) == 1 else None
            if rest or (block and block.line == number + 2 and page.lines[number].strip()):
                block = None
            quote = block.body if block else None
            if match.re is ADDRESS:
                found.append(_on_github(number, match, quote))
            else:
                found.append(_reference(number, match, quote, surely=False))
    return sorted(found, key=lambda each: (each.line, each.column))


def _of_fence(page: Page, fence: Fence, exists: Callable[[str], bool]) -> Iterator[Reference]:
    line = page.lines[fence.line - 1]
    match = _FENCE.search(fence.info)
    if match:
        column = line.index(match["start"], line.rindex(fence.info) + match.start("start"))
        yield Reference(
            fence.line,
            column,
            match[0].strip(),
            match["path"],
            int(match["start"]),
            int(match["end"]),
            fence.body,
            True,
            lambda path, start, end: f"{start}:{end}:{path}",
        )
        return
    at = line.rindex(fence.info) if fence.info else 0
    for found in _in_text(" " * at + fence.info, exists):
        yield _reference(fence.line, found, fence.body, surely=True)
        return


def _in_text(line: str, exists: Callable[[str], bool]) -> Iterator[re.Match[str]]:
    for match in _PLACE.finditer(_URL.sub(lambda m: " " * len(m[0]), line)):
        if _TEXT_FILE.search(match["path"]) or exists(match["path"]):
            yield match


def _on_github(line: int, match: re.Match[str], quote: tuple[str, ...] | None) -> Reference:
    start, end = int(match["start"]), int(match["end"] or match["start"])
    page = match[0].partition("#")[0]

    def write(path: str, first: int, last: int) -> str:
        return f"{page}#L{first}" if first == last else f"{page}#L{first}-L{last}"

    named = address_of(match)
    return Reference(
        line, match.start(), match[0], named.after, start, end, quote, False, write, named
    )


def _reference(
    line: int, match: re.Match[str], quote: tuple[str, ...] | None, *, surely: bool
) -> Reference:
    start = int(match["start"] or match["start2"])
    end = int(match["end"] or match["end2"] or start)
    single = not (match["end"] or match["end2"])
    dash = match["dash"] or match["dash2"] or "-"

    def write(path: str, first: int, last: int) -> str:
        if single and first == last:
            return f"{path}:{first}" if match["colon"] else f"{path}#L{first}"
        if match["colon"]:
            return f"{path}:{first}{dash}{last}"
        return f"{path}#L{first}-{'L' if single else match['l2']}{last}"

    return Reference(line, match.start(), match[0], match["path"], start, end, quote, surely, write)
