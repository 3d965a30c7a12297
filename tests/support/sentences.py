"""What the source of `trace` and `compare` can say: the constant texts of its files."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

ROOM = Path(__file__).parents[2] / "src/overlapkit/trace"
_SAY_NOTHING = {"InputError", "Meta", "compile"}


def sentences(source: str) -> list[str]:
    """The constant texts of at least three words in the code of a file of the room."""
    tree = ast.parse((ROOM / source).read_text())
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            left_out.add(id(node.value))
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            left_out |= {id(part) for part in ast.walk(node)} if name in _SAY_NOTHING else set()
    texts = (
        node.value.strip()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in left_out
    )
    return [t for t in texts if sum(word.isalpha() for word in t.split()) >= 3]


def unknown(source: str, known: Iterable[str]) -> list[str]:
    """The sentences of a file that none of the known ones has, and that have none of them."""
    known = [one for one in known if len(one) > 8]
    return [
        text for text in sentences(source) if not any(text in one or one in text for one in known)
    ]
