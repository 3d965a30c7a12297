"""Looks at commands without following them: what they may set, and whether they leave a script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from overlapkit.config.shell.grammar.syntax import (
    AndOr,
    Assignment,
    Background,
    Case,
    CommandList,
    Counting,
    Group,
    If,
    Loop,
    Negated,
    Node,
    Pipeline,
    Redirected,
    Simple,
    Word,
)

_MATTERS = re.compile(r"\w\+?=|(?<![\w-])--\w|(?:^|[\s;&|({])(?:source|\.|eval|export)\s")
"""Found in a part of a script that must not be skipped silently, since it may change the answer."""
_FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
_LEAVES = frozenset({"exit", "return", "exec"})
_RESUBMITS = frozenset({"sbatch", "qsub", "bsub"})
_STARTS = frozenset(
    {"torchrun", "python", "python3", "srun", "mpirun", "mpiexec", "deepspeed", "accelerate"}
    | {"msrun", "ray", "megatron", "bash", "sh", "eval", "exec", "nohup", "timeout", "env"}
)
_DEEPEST = 4
_SETS = frozenset({"read", "mapfile", "readarray", "getopts", "eval", "source", "."})


def matters(*parts: CommandList) -> bool:
    """Whether skipping these commands may change the answer."""
    return any(_MATTERS.search(part.source) for part in parts)


def flags_in(*parts: Node | CommandList) -> set[str]:
    """The flags that are written in commands."""
    texts = []
    for part in parts:
        if isinstance(part, CommandList):
            texts.append(part.source)
            continue
        for each in _simple(part):
            values = [] if isinstance(each, Counting) else [*each.words, *each.assignments]
            texts += [text for value in values for text in _texts(value)]
    return {flag for text in texts for flag in _FLAG.findall(text)}


def _texts(value: Word | Assignment) -> Iterator[str]:
    """The literal parts of a word, or of what is assigned."""
    if isinstance(value, Word):
        yield "".join(getattr(part, "text", " ") for part in value.parts)
        return
    several = value.value if isinstance(value.value, tuple) else (value.value,)
    for each in several:
        if each is not None:
            yield from _texts(each)


def sourced(node: Node | CommandList) -> Iterator[Simple]:
    """The commands in it that read another file or a text as commands."""
    for each in _simple(node):
        if isinstance(each, Simple) and _name(each) in ("source", ".", "eval"):
            yield each


def exported_names(*nodes: Node | CommandList) -> set[str]:
    """The variables that commands export by name alone, ``export A B``."""
    return {
        word.literal
        for node in nodes
        for each in _simple(node)
        if isinstance(each, Simple) and _name(each) == "export"
        for word in each.words[1:]
        if isinstance(word, Word) and word.literal and word.literal.isidentifier()
    }


def leaves(node: Node | CommandList, functions: Mapping[str, Node], depth: int = 0) -> bool:
    """Whether commands always end the script or function, or submit it again."""
    if depth > _DEEPEST:
        return False
    if isinstance(node, CommandList):
        return any(leaves(each, functions, depth) for each in node.commands)
    if isinstance(node, Simple):
        name = _name(node)
        if name == "return" or name in _LEAVES:
            return name != "exec" or len(node.words) > 1
        body = functions.get(name)
        return name in _RESUBMITS or (
            body is not None and leaves_script(body, functions, depth + 1)
        )
    if isinstance(node, (Group, Redirected)):
        inner = node.body if isinstance(node, Group) else node.command
        own = isinstance(node, Group) and node.own_process
        return not own and leaves(inner, functions, depth)
    if isinstance(node, AndOr):
        return leaves(node.first, functions, depth) or any(
            # echo "usage" && exit 1
            connector == "&&" and leaves(each, functions, depth) and not _is_test(node.first)
            for connector, each in node.others
        )
    if isinstance(node, If):
        bodies = [body for _, body in node.branches]
        return all(leaves(body, functions, depth) for body in [*bodies, node.otherwise])
    return False


def leaves_script(node: Node | CommandList, functions: Mapping[str, Node], depth: int = 0) -> bool:
    """As `leaves`, where ``return`` only ends the function."""
    return any(
        _name(each) in ("exit", *_RESUBMITS) for each in _simple(node) if isinstance(each, Simple)
    ) and leaves(node, functions, depth)


def _is_test(node: Node) -> bool:
    return isinstance(node, Simple) and _name(node) in ("[", "test")


def _name(node: Simple) -> str:
    word = node.words[0] if node.words else None
    return (word.literal or "") if isinstance(word, Word) else ""


def sets_or_starts(node: Node) -> bool:
    """Whether skipping a command may change the answer."""
    if not isinstance(node, Simple):
        return True
    words = [word for word in node.words if isinstance(word, Word)]
    flags = any((word.literal or "").startswith("--") for word in words)
    reads = _name(node) in ("source", ".", "eval", "export")
    return bool(node.assignments) or len(words) < len(node.words) or flags or reads


def starts_program(
    *nodes: Node | CommandList, functions: Mapping[str, Node], depth: int = 0
) -> bool:
    """Whether commands may start a training job, as far as their first words say."""
    for each in (each for node in nodes for each in _simple(node, processes=True)):
        if not isinstance(each, Simple) or not each.words or depth > _DEEPEST:
            continue
        first, name = each.words[0], _name(each)
        body = functions.get(name)
        if body is not None:
            if starts_program(body, functions=functions, depth=depth + 1):
                return True
        elif isinstance(first, Word) and first.literal is None:
            # $LAUNCHER $ARGS
            return True
        elif name.rpartition("/")[2] in _STARTS or name.endswith((".sh", ".py")):
            return True
    return False


def sets(node: Node | CommandList) -> bool:
    """Whether commands set a variable."""
    return bool(assigned_names(node)) or any(
        _name(each) in _SETS for each in _simple(node) if isinstance(each, Simple)
    )


def assigned_names(*nodes: Node | CommandList) -> set[str]:
    """The variables that commands assign, as far as they are written."""
    names: set[str] = set()
    for node in nodes:
        for each in _simple(node):
            if isinstance(each, Counting):
                text = "".join(str(getattr(p, "text", "")) for p in each.text.parts)
                names |= set(re.findall(r"([A-Za-z_]\w*)\s*(?:\+\+|--|[-+*/%]?=(?!=))", text))
                continue
            if not each.words:
                names |= {a.name for a in each.assignments}
            names |= {w.name for w in each.words if isinstance(w, Assignment)}
            if _name(each) in ("read", "mapfile", "readarray"):
                literals = [w.literal or "" for w in each.words[1:] if isinstance(w, Word)]
                names |= {text for text in literals if text.isidentifier()}
    return names


def _simple(node: Node | CommandList, *, processes: bool = False) -> Iterator[Simple | Counting]:
    """Every simple command in commands, in order; not those of functions that are only defined.

    Args:
        node: the commands.
        processes: whether those of subshells count.
    """
    stack: list[Node | CommandList] = [node]
    while stack:
        each = stack.pop()
        if isinstance(each, (Simple, Counting)):
            yield each
        else:
            inner = inside(each)
            if processes and isinstance(each, Group):
                inner = (each.body,)
            stack += reversed(list(inner))


def inside(node: Node | CommandList) -> Iterable[Node | CommandList]:
    """The commands that a command consists of; none of a process of its own."""
    if isinstance(node, CommandList):
        return node.commands
    if isinstance(node, (Negated, Background, Redirected)):
        return (node.command,)
    if isinstance(node, Group):
        return () if node.own_process else (node.body,)
    if isinstance(node, AndOr):
        return (node.first, *(other for _, other in node.others))
    if isinstance(node, If):
        pairs = (part for branch in node.branches for part in branch)
        return (*pairs, node.otherwise)
    if isinstance(node, Case):
        return (body for _, body, _ in node.items)
    if isinstance(node, Loop):
        return (node.body,) if node.condition is None else (node.condition, node.body)
    return node.commands if isinstance(node, Pipeline) else ()
