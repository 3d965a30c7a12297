"""Predicates on the syntax tree: which statement of a symbol a query means.

They name what a statement does, not how it is written, so that one query holds over versions.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

Statement = ast.stmt | ast.keyword
Predicate = Callable[[Statement, list[str]], bool]
"""Whether a statement is meant; the second argument is the lines of the file."""


def begins(text: str) -> Predicate:
    """The first line of the statement begins with a text."""
    return lambda node, lines: lines[node.lineno - 1].strip().startswith(text)


def branch_on(*names: str, above: int | None = None) -> Predicate:
    """An `if` whose test reads all the names.

    Args:
        names: ``name``, or ``object.name`` for an attribute of what is called so.
        above: the test compares one of them with this number by ``>``.
    """

    def holds(node: Statement, lines: list[str]) -> bool:
        if not isinstance(node, ast.If) or not all(reads(node.test, name) for name in names):
            return False
        return above is None or any(_is_above(each, names, above) for each in ast.walk(node.test))

    return holds


def assigns(name: str, *, but: tuple[object, ...] = ()) -> Predicate:
    """An assignment to a name or an attribute of that name.

    Args:
        name: without what it is an attribute of.
        but: constants whose assignment is not meant.
    """

    def holds(node: Statement, lines: list[str]) -> bool:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            return False
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        constant = isinstance(node.value, ast.Constant) and any(node.value.value is b for b in but)
        return not constant and any(_last_name(target) == name for target in targets)

    return holds


def sets_variable(name: str) -> Predicate:
    """A statement that gives an environment variable a value, in any mapping.

    ``mapping[name] = ...``, ``mapping.setdefault(name, ...)``, and an assignment or a call with a
    mapping that has the name.
    """

    def holds(node: Statement, lines: list[str]) -> bool:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Subscript) and _is_constant(target.slice, name)
            for target in node.targets
        ):
            return True
        if not isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr)):
            return False
        return any(_gives(each, name) for each in ast.walk(node.value))

    return holds


def _gives(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Dict):
        return any(key is not None and _is_constant(key, name) for key in node.keys)
    return (
        isinstance(node, ast.Call)
        and _last_name(node.func) == "setdefault"
        and bool(node.args)
        and _is_constant(node.args[0], name)
    )


def demands(variable: str, value: str) -> Predicate:
    """An `assert` that an environment variable has a value."""

    def holds(node: Statement, lines: list[str]) -> bool:
        return isinstance(node, ast.Assert) and any(
            isinstance(each, ast.Compare)
            and isinstance(each.ops[0], ast.Eq)
            and _mentions(each, variable)
            and any(_is_constant(side, value) for side in each.comparators)
            for each in ast.walk(node.test)
        )

    return holds


def tests(variable: str) -> Predicate:
    """An `if` or an `assert` whose test mentions an environment variable."""
    return lambda node, lines: (
        isinstance(node, (ast.If, ast.Assert)) and _mentions(node.test, variable)
    )


def uses(name: str) -> Predicate:
    """A loop, a call or an assignment that reads an attribute of that name."""
    return lambda node, lines: (
        isinstance(node, (ast.For, ast.Expr, ast.Assign))
        and any(
            isinstance(each, ast.Attribute) and each.attr == name
            for each in ast.walk(node.iter if isinstance(node, ast.For) else node)
        )
    )


def reads(expression: ast.AST, name: str) -> bool:
    """Whether an expression reads a name, or an attribute: ``name`` or ``object.name``."""
    wanted = name.split(".")
    return any(_names(each)[-len(wanted) :] == wanted for each in ast.walk(expression))


def _names(node: ast.AST) -> list[str]:
    """The names of a chain of attributes: ``a.b.c`` is a, b and c; empty for another node."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_names(node.value), node.attr]
    if isinstance(node, ast.Call) and _last_name(node.func) == "getattr" and len(node.args) > 1:
        key = node.args[1]
        return [*_names(node.args[0]), str(key.value)] if isinstance(key, ast.Constant) else []
    return []


def _last_name(node: ast.AST) -> str | None:
    names = _names(node)
    return names[-1] if names else None


def _is_constant(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def _mentions(node: ast.AST, text: str) -> bool:
    return any(_is_constant(each, text) for each in ast.walk(node))


def _is_above(node: ast.AST, names: tuple[str, ...], number: int) -> bool:
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Gt)
        and _is_constant(node.comparators[0], number)
        and any(reads(node.left, name) for name in names)
    )
