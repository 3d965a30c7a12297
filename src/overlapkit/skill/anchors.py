"""Code anchors: a query for a place in the source, answered with its current lines.

A line number written into a text is wrong after the next edit. An anchor is therefore a query - a
symbol, and perhaps a statement in it - that is resolved on the syntax tree at every rendering.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overlapkit.errors import InputError


@dataclass(frozen=True)
class Anchor:
    """A place in a source file: its lines, numbered from 1, both ends included."""

    path: str
    start: int
    end: int
    text: str

    def __str__(self) -> str:
        """A fenced block whose info string is ``START:END:path``."""
        return f"```{self.start}:{self.end}:{self.path}\n{self.text}\n```"


def find_anchor(root: Path, path: str, symbol: str, inside: str | None = None) -> Anchor:
    """The one place that a query matches.

    Args:
        root: the repository.
        path: source file in it.
        symbol: dotted name of a function, class or assigned name: ``Cls.method``, ``TABLE``.
        inside: how the first line of one statement in the symbol begins; None for the whole symbol.

    Raises:
        InputError: the file cannot be parsed, or the query matches nothing or several places.
    """
    query = f"anchor({path!r}, {symbol!r}" + (f", {inside!r})" if inside else ")")
    try:
        source = (root / path).read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{query}: {path} cannot be read as Python: {error}") from None
    lines = source.splitlines()
    holders = list(_symbols(tree, symbol.split(".")))
    if len(holders) != 1:
        raise InputError(f"{query}: {symbol} is found {len(holders)} times, not once")
    if inside is None:
        return _cut(path, lines, holders[0])
    found = [
        node
        for node in ast.walk(holders[0])
        if isinstance(node, (ast.stmt, ast.keyword))
        and node is not holders[0]
        and lines[node.lineno - 1].strip().startswith(inside)
    ]
    # A statement and one nested in it may begin on one line: take the outer one.
    outer = {node.lineno: node for node in reversed(found)}
    if len(outer) != 1:
        raise InputError(f"{query}: {inside!r} is found {len(outer)} times in {symbol}, not once")
    return _cut(path, lines, next(iter(outer.values())))


def _symbols(tree: ast.AST, names: list[str]) -> Iterator[ast.stmt]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.stmt) or names[0] not in _names(node):
            continue
        if len(names) == 1:
            yield node
        else:
            yield from _symbols(node, names[1:])


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {t.id for t in targets if isinstance(t, ast.Name)}


def _cut(path: str, lines: list[str], node: ast.stmt | ast.keyword) -> Anchor:
    start = node.lineno
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.decorator_list:
        start = node.decorator_list[0].lineno
    end = node.end_lineno or start
    # Not dedented: each line can be compared with the file exactly.
    return Anchor(path, start, end, "\n".join(lines[start - 1 : end]))
