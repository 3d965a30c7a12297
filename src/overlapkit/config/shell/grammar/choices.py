"""The values that a script's own conditions know of a variable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from overlapkit.config.shell.grammar.scan import inside, leaves
from overlapkit.config.shell.grammar.syntax import (
    AndOr,
    Assignment,
    Case,
    CommandList,
    Function,
    Group,
    If,
    Node,
    Parameter,
    Simple,
    Test,
    Text,
    Word,
)

_EQUAL = frozenset({"=", "==", "-eq"})
_CHANGES_NOTHING = frozenset({"", ":-", "-", ":=", "=", ":?", "?", ",", ",,", "^", "^^"})
"""Operators whose result is still the variable's value, or that in another case."""
_PATTERN = frozenset("*?[(")


def choices(commands: CommandList) -> dict[str, tuple[str, ...]]:
    """By variable, the values that ``case`` and comparisons name, in the order of the script.

    What is named of a variable that is only a copy, as of ``SIZE=$1``, counts for both. Options,
    patterns, the empty value and a value that ends the script are none.
    """
    named: dict[str, dict[str, None]] = {}
    copies: dict[str, str] = {}
    for node in _every(commands):
        if isinstance(node, Case):
            bodies = ((words, body) for words, body, _ in node.items if not leaves(body, {}))
            _add(named, node.word, (word for words, _ in bodies for word in words))
        elif isinstance(node, (Simple, Test)):
            for left, sign, right in zip(node.words, node.words[1:], node.words[2:], strict=False):
                if isinstance(sign, Word) and sign.literal in _EQUAL:
                    _add(named, left, [right])
        if isinstance(node, Simple):
            copies |= dict(_copies(node))
    for copy, origin in copies.items():
        if copy in named and copy != origin:
            named.setdefault(origin, {}).update(named[copy])
    return {name: tuple(values) for name, values in named.items()}


def _add(
    named: dict[str, dict[str, None]], of: Word | Assignment, words: Iterable[Word | Assignment]
) -> None:
    name = _variable(of)
    if name is None:
        return
    for word in words:
        text = word.literal if isinstance(word, Word) and not _is_pattern(word) else None
        if text and not text.startswith("-"):
            named.setdefault(name, {})[text] = None


def _is_pattern(word: Word) -> bool:
    return any(
        isinstance(part, Text) and not part.quoted and _PATTERN & set(part.text)
        for part in word.parts
    )


def _variable(word: object) -> str | None:
    """The variable whose value a word is; None for any other word."""
    if not isinstance(word, Word) or len(word.parts) != 1:
        return None
    part = word.parts[0]
    if not isinstance(part, Parameter) or part.index or part.indirect:
        return None
    return part.name if part.operator in _CHANGES_NOTHING else None


def _copies(node: Simple) -> Iterator[tuple[str, str]]:
    """The variables that a command makes copies of others, and these."""
    for each in (*node.assignments, *node.words):
        if isinstance(each, Assignment) and not each.append:
            origin = _variable(each.value)
            if origin is not None:
                yield each.name, origin


def _every(commands: CommandList) -> Iterator[Node]:
    """Every command in commands, in order, with those of functions and subshells."""
    stack: list[Node | CommandList] = [commands]
    while stack:
        node = stack.pop()
        if isinstance(node, CommandList):
            stack += reversed(node.commands)
            continue
        yield node
        stack += reversed(list(_parts(node)))


def _parts(node: Node) -> Iterable[Node | CommandList]:
    """What a command consists of, without a condition that leads to the end of the script."""
    if isinstance(node, (Group, Function)):
        return (node.body,)
    if isinstance(node, If):
        kept = ((c, body) for c, body in node.branches if not leaves(body, {}))
        return (*(part for pair in kept for part in pair), node.otherwise)
    if isinstance(node, AndOr):
        ends = any(connector == "&&" and leaves(each, {}) for connector, each in node.others)
        others = tuple(each for _, each in node.others)
        return others if ends else (node.first, *others)
    return inside(node)
