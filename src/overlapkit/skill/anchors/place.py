"""The answer of a query: lines of a file, quoted whole or with the lines that decide alone."""

from __future__ import annotations

import ast
from dataclasses import dataclass

LEFT_OUT = "\u2026"
"""Stands in a quotation for lines that were left out."""

_HEADED = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Anchor:
    """A place in a source file: its lines, numbered from 1, both ends included.

    Attributes:
        path: of the file in its repository.
        start, end: the first and the last line.
        text: the lines; those that `LEFT_OUT` stands for are left out.
    """

    path: str
    start: int
    end: int
    text: str

    def __str__(self) -> str:
        """A fenced block whose info string is ``START:END:path``."""
        return f"```{self.start}:{self.end}:{self.path}\n{self.text}\n```"


def whole(path: str, lines: list[str], node: ast.stmt | ast.keyword) -> Anchor:
    """All lines of a statement, with its decorators.

    They are not dedented: each line can be compared with the file exactly.
    """
    start, end = extent(node)
    return Anchor(path, start, end, "\n".join(lines[start - 1 : end]))


def deciding(
    path: str,
    lines: list[str],
    node: ast.stmt | ast.keyword,
    most: int,
    *,
    effects_first: bool = False,
) -> Anchor:
    """A statement with at most so many of its lines: those that decide.

    Args:
        path: of the file.
        lines: of the file.
        node: the statement.
        most: how many lines are quoted; `LEFT_OUT` is not counted.
        effects_first: whether assignments come before the branches in the statement.
    """
    start, end = extent(node)
    if end - start < most:
        return whole(path, lines, node)
    inside = [_branches(lines, node), _effects(node)]
    parts = inside[::-1] if effects_first else inside
    kept = set(list(dict.fromkeys([*_header(node), *parts[0], *parts[1]]))[:most])
    text: list[str] = []
    for number in range(start, end + 1):
        line = lines[number - 1]
        if number in kept:
            text.append(line)
        elif text[-1:] != [LEFT_OUT]:
            text.append(LEFT_OUT)
    return Anchor(path, start, end, "\n".join(text))


def extent(node: ast.stmt | ast.keyword) -> tuple[int, int]:
    """The first and the last line of a statement, with its decorators."""
    start = node.lineno
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.decorator_list:
        start = node.decorator_list[0].lineno
    return start, node.end_lineno or start


def _header(node: ast.stmt | ast.keyword) -> range:
    """The lines of a statement before its body."""
    body = getattr(node, "body", None)
    return range(node.lineno, body[0].lineno if isinstance(body, list) else node.lineno + 1)


def _branches(lines: list[str], node: ast.stmt | ast.keyword) -> list[int]:
    """The first lines of the branches in a statement, in their order."""
    start, end = extent(node)
    branches = {each.lineno for each in ast.walk(node) if isinstance(each, _HEADED)}
    return sorted(branches | {n for n in range(start, end + 1) if lines[n - 1].strip() == "else:"})


def _effects(node: ast.stmt | ast.keyword) -> list[int]:
    """The first lines of assignments, refusals and results in a statement, in their order."""
    kinds = (ast.Assign, ast.AnnAssign, ast.Assert, ast.Return, ast.Raise)
    return sorted({each.lineno for each in ast.walk(node) if isinstance(each, kinds)})
