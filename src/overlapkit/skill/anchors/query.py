"""A query for a place in source: a file, a symbol in it, and perhaps a statement in that.

A line number written into a text is wrong after the next edit. An anchor is therefore a query that
is resolved on the syntax tree at every rendering.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from overlapkit.errors import InputError
from overlapkit.skill.anchors.place import Anchor, whole
from overlapkit.skill.anchors.predicates import Predicate, Statement, begins

MOST_BYTES = 4 * 1024 * 1024
"""Of a source file that is parsed; the largest of Megatron has 0.3 MB."""
_BLOCKS = (ast.If, ast.Try, ast.With, ast.ExceptHandler)
"""Statements whose bodies define names of the scope around them."""


@dataclass(frozen=True)
class Module:
    """A parsed source file."""

    path: str
    lines: list[str]
    tree: ast.Module


def parse(file: Path, path: str) -> Module:
    """A source file, parsed.

    Args:
        file: the file.
        path: how anchors name it.

    Raises:
        ValueError: it cannot be read as Python; why.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"is larger than {MOST_BYTES >> 20} MiB")
        source = file.read_text(encoding="utf-8")
        tree = _tree(source)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return Module(path, source.splitlines(), tree)


@lru_cache(maxsize=32)
def _tree(source: str) -> ast.Module:
    """The syntax tree of a source: several queries ask for the same one."""
    return ast.parse(source)


def holders(module: Module, symbol: str) -> list[ast.stmt]:
    """Every definition of a symbol: ``Cls.method``, ``TABLE``."""
    return list(_symbols(module.tree, symbol.split(".")))


def matches(module: Module, symbol: str, statement: Predicate | None) -> list[Statement]:
    """Every place that a query means in a file, in order.

    Args:
        module: the file.
        symbol: see `holders`; empty for the whole file.
        statement: which statements in it; None for the definitions themselves.
    """
    scopes: list[ast.stmt] | list[ast.Module] = holders(module, symbol) if symbol else [module.tree]
    if statement is None:
        return [each for each in scopes if isinstance(each, ast.stmt)]
    return [each for scope in scopes for each in statements(module, scope, statement)]


def named(module: Module, name: str, statement: Predicate) -> list[Statement]:
    """Every place that a query means in functions of a name, whatever class they are in."""
    functions = [
        each
        for each in ast.walk(module.tree)
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)) and each.name == name
    ]
    return [each for scope in functions for each in statements(module, scope, statement)]


def statements(module: Module, within: ast.AST, predicate: Predicate) -> list[Statement]:
    """The statements in a node that a predicate holds for, in order of their lines.

    A statement in one that is found already is left out, as is the node itself.
    """
    found: list[Statement] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.stmt, ast.keyword)) and predicate(child, module.lines):
                found.append(child)
            else:
                visit(child)

    visit(within)
    # A statement and a keyword in it may begin on one line: they are one place.
    first = {node.lineno: node for node in reversed(found)}
    return [first[line] for line in sorted(first)]


def find_anchor(
    root: Path, path: str, symbol: str, inside: Predicate | str | None = None
) -> Anchor:
    """The one place that a query matches.

    Args:
        root: the repository.
        path: source file in it.
        symbol: dotted name of a function, class or assigned name: ``Cls.method``, ``TABLE``.
        inside: which statement in the symbol, or how its first line begins; None for all of it.

    Raises:
        InputError: the file cannot be parsed, or the query matches nothing or several places.
    """
    shown = f", {inside!r}" if isinstance(inside, str) else ""
    query = f"anchor({path!r}, {symbol!r}{shown})"
    try:
        module = parse(root / path, path)
    except ValueError as error:
        raise InputError(f"{query}: {path} cannot be read as Python: {error}") from None
    found = holders(module, symbol)
    if len(found) != 1:
        raise InputError(f"{query}: {symbol} is found {len(found)} times, not once")
    if inside is None:
        return whole(path, module.lines, found[0])
    predicate = begins(inside) if isinstance(inside, str) else inside
    matching = statements(module, found[0], predicate)
    if len(matching) != 1:
        what = repr(inside) if isinstance(inside, str) else "the statement"
        raise InputError(f"{query}: {what} is found {len(matching)} times in {symbol}, not once")
    return whole(path, module.lines, matching[0])


def _symbols(tree: ast.AST, names: list[str]) -> Iterator[ast.stmt]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _BLOCKS):
            yield from _symbols(node, names)
        elif isinstance(node, ast.stmt) and names[0] in _defined(node):
            if len(names) == 1:
                yield node
            else:
                yield from _symbols(node, names[1:])


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {t.id for t in targets if isinstance(t, ast.Name)}
