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


def deciding(path: str, lines: list[str], node: ast.stmt | ast.keyword, most: int) -> Anchor:
    """A statement with at most so many of its lines: those that decide.

    Args:
        path: of the file.
        lines: of the file.
        node: the statement.
        most: how many lines are quoted, those of the conditions first; `LEFT_OUT` is not counted.
    """
    start, end = extent(node)
    if end - start < most:
        return whole(path, lines, node)
    kept = set([*_conditions(lines, node), *_effects(node)][:most])
    text: list[str] = []
    for number in range(start, end + 1):
        line = lines[number - 1]
        if number in kept:
            text.append(line)
        elif not text or text[-1].strip() != LEFT_OUT:
            text.append(" " * (len(line) - len(line.lstrip())) + LEFT_OUT)
    return Anchor(path, start, end, "\n".join(text))


def extent(node: ast.stmt | ast.keyword) -> tuple[int, int]:
    """The first and the last line of a statement, with its decorators."""
    start = node.lineno
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.decorator_list:
        start = node.decorator_list[0].lineno
    return start, node.end_lineno or start


def _conditions(lines: list[str], node: ast.stmt | ast.keyword) -> list[int]:
    """The lines of a statement's own header, then of the branches in it, in their order."""
    body = getattr(node, "body", None)
    header = range(node.lineno, body[0].lineno if isinstance(body, list) else node.lineno + 1)
    start, end = extent(node)
    branches = {each.lineno for each in ast.walk(node) if isinstance(each, _HEADED)}
    branches |= {n for n in range(start, end + 1) if lines[n - 1].strip() == "else:"}
    return list(dict.fromkeys([*header, *sorted(branches)]))


def _effects(node: ast.stmt | ast.keyword) -> list[int]:
    """The first lines of assignments, refusals and results in a statement, in their order."""
    kinds = (ast.Assign, ast.AnnAssign, ast.Assert, ast.Return, ast.Raise)
    return sorted({each.lineno for each in ast.walk(node) if isinstance(each, kinds)})
