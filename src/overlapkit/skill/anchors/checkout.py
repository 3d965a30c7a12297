"""The anchors of a checkout: which repository and version it is, and what each query finds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from overlapkit.config.installation import BRIDGE_FILE, CORE_FILE, declared_version
from overlapkit.errors import InputError
from overlapkit.skill.anchors.place import Anchor, deciding
from overlapkit.skill.anchors.predicates import Statement
from overlapkit.skill.anchors.query import Module, find_anchor, matches, named, parse
from overlapkit.skill.anchors.sets import BRIDGE, MEGATRON_LM, OWN, Query, Where
from overlapkit.skill.check.checkout import files_below
from overlapkit.skill.check.git import Git

SUBMODULE = "3rdparty/Megatron-LM/"
"""Where a checkout of Megatron-Bridge has the Megatron-LM that it pins."""
MAIN_LINES = 3
"""Lines of each anchor in SKILL.md."""
MOST_LINES = 16
"""Lines of each anchor on the page of all anchors."""
_DEFINITION = re.compile(r"^[ \t]*(?:class|(?:async )?def) (\w+)", re.MULTILINE)
_NOT_SOURCE = re.compile(r"(^|/)(tests?|examples|docs|tutorials|3rdparty|skills|\.\w+)/")


@dataclass(frozen=True)
class Found:
    """What a query found in a checkout.

    Attributes:
        label: what is decided there.
        short: the anchor with the few lines that decide; None where the code is not there.
        full: the anchor with more lines; None as well.
        note: where the code went, or that it is not there; empty where it is where it was.
        detail: the note with where the code was looked for, or has another name.
        main: whether SKILL.md shows it.
    """

    label: str
    short: Anchor | None
    full: Anchor | None
    note: str
    detail: str
    main: bool


@dataclass(frozen=True)
class Anchors:
    """The anchors of one repository.

    Attributes:
        name: the repository with the version that was found, for a heading.
        found: what each query found.
    """

    name: str
    found: tuple[Found, ...]

    @property
    def main(self) -> list[Found]:
        """What SKILL.md shows."""
        return [each for each in self.found if each.main]


def own_anchors(root: Path) -> Anchors:
    """The anchors of our own source, each in one place.

    Raises:
        InputError: a query matches nothing or several places.
    """
    found = []
    for query in OWN:
        (where,) = query.places
        anchor = find_anchor(root, where.path, where.symbol, where.statement)
        found.append(Found(query.label, anchor, anchor, "", "", query.main))
    return Anchors("overlapkit", tuple(found))


def anchors_of(name: str) -> list[Anchors]:
    """The anchors of a checkout of Megatron-Bridge or Megatron-LM, or of their packages.

    Args:
        name: the checkout's folder. Megatron-LM is looked for inside of Megatron-Bridge as well.

    Raises:
        InputError: it is not a folder that can be read, or has neither repository.
    """
    try:
        root = Path(os.path.realpath(name))
        if not root.is_dir():
            raise InputError(f"--against {name}: is not a folder; name a checkout")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--against {name}: cannot be read: {reason}") from None
    if (root / "src/overlapkit/skill/templates").is_dir():
        return [own_anchors(root)]
    sources = Sources(root)
    sets = (
        ("Megatron-Bridge", ("src/", ""), BRIDGE_FILE.relative_to("src"), BRIDGE),
        ("Megatron-LM", _megatron_lm(root), CORE_FILE, MEGATRON_LM),
    )
    answer = []
    for title, prefixes, version_file, queries in sets:
        found = [f for query in queries if (f := _answer(query, sources, prefixes)) is not None]
        if any(each.short for each in found):
            version = _version(sources, prefixes, version_file)
            answer.append(Anchors(f"{title} {version}", tuple(found)))
    if not answer:
        raise InputError(
            f"--against {name}: has no code of Megatron-Bridge or Megatron-LM that decides on "
            "overlap; name a checkout of one of them, or a folder with their packages"
        )
    return answer


def _megatron_lm(root: Path) -> tuple[str, ...]:
    """Where Megatron-LM is in a checkout: the root, or a submodule; empty where it is not."""
    known = ("megatron/core", "megatron/training", "megatron/arguments.py")
    prefixes = ("", SUBMODULE)
    return tuple(p for p in prefixes if any((root / p / each).exists() for each in known))


def _version(sources: Sources, prefixes: Sequence[str], file: Path) -> str:
    """The version that a repository states, and the commit that is checked out."""
    stated = None
    for prefix in prefixes:
        try:
            stated = stated or declared_version(sources.root / prefix / file)
        except InputError:
            continue
    commit = sources.git.commit() if SUBMODULE not in prefixes else None
    state = stated or "(no version stated)"
    return f"{state}, commit {commit}" if commit else state


class Sources:
    """The Python files of a checkout, by what they define.

    Attributes:
        root: the checkout.
        git: what git knows of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git = Git(root)

    @cached_property
    def _definitions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in files_below(self.root, self.git):
            if path.endswith(".py") and not _NOT_SOURCE.search(path):
                for name in set(_DEFINITION.findall(self._text(path))):
                    found.setdefault(name, []).append(path)
        return found

    def defining(self, name: str, like: str) -> list[str]:
        """The files that define a class or a function, those named as the file `like` first."""
        same = like.rpartition("/")[2]
        paths = self._definitions.get(name, [])
        return sorted(paths, key=lambda path: (path.rpartition("/")[2] != same, len(path), path))

    def _text(self, path: str) -> str:
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def module(self, path: str) -> Module | None:
        """A file, parsed; None where it is not there, or is no Python."""
        try:
            return parse(self.root / path, path)
        except ValueError:
            return None


def _answer(query: Query, sources: Sources, prefixes: Sequence[str]) -> Found | None:
    """What a query finds: where the code is known to be, else wherever it is now."""
    if not prefixes:
        return None
    for search in (_exact, _in_class_or_file, _in_namesake):
        for where in query.places:
            for module, nodes, detail in search(where, sources, prefixes):
                if nodes:
                    said = "; ".join(filter(None, (where.note, detail)))
                    return _found(query, module, nodes[0], where.note, said)
    if not query.always:
        return None
    sought = dict.fromkeys(f"{w.symbol or 'the code'} in {w.path}" for w in query.places)
    note = "not in this checkout"
    detail = f"{note}; looked for {', '.join(sought)}, and elsewhere by name"
    return Found(query.label, None, None, note, detail, query.main)


_Searched = Iterator[tuple[Module, list[Statement], str]]
"""Files that were looked at, what was found in each, and how it differs from what is known."""


def _exact(where: Where, sources: Sources, prefixes: Sequence[str]) -> _Searched:
    """The symbol, where it is known to be and then in other files."""
    for module in _modules(where, sources, prefixes):
        known = module.path in _known(where, prefixes)
        detail = "" if known else f"{where.path} has no {where.symbol}; found here"
        yield module, matches(module, where.symbol, where.statement), detail


def _in_class_or_file(where: Where, sources: Sources, prefixes: Sequence[str]) -> _Searched:
    """The statement in the symbol's class, or in the file: a method may have another name."""
    if where.statement is not None and where.symbol:
        around = where.symbol.rpartition(".")[0]
        for module in _modules(where, sources, prefixes):
            detail = f"no longer in {where.symbol}"
            yield module, matches(module, around, where.statement), detail


def _in_namesake(where: Where, sources: Sources, prefixes: Sequence[str]) -> _Searched:
    """The statement in any function of the same name: its class may have another name."""
    name = where.symbol.rpartition(".")[2]
    if where.statement is not None and name:
        for path in sources.defining(name, where.path):
            module = sources.module(path)
            if module is not None:
                yield module, named(module, name, where.statement), f"no {where.symbol}; found here"


def _modules(where: Where, sources: Sources, prefixes: Sequence[str]) -> Iterator[Module]:
    """The files that can have a place: where it is known to be, then where its symbol is."""
    known = _known(where, prefixes)
    name = where.symbol.partition(".")[0]
    others = (path for path in sources.defining(name, where.path) if path not in known)
    for path in chain(known, others if name else ()):
        module = sources.module(path)
        if module is not None:
            yield module


def _known(where: Where, prefixes: Sequence[str]) -> list[str]:
    return [prefix + where.path.removeprefix("src/") for prefix in prefixes]


def _found(query: Query, module: Module, node: Statement, note: str, detail: str) -> Found:
    short, full = (
        deciding(module.path, module.lines, node, most, effects_first=query.effects_first)
        for most in (MAIN_LINES, MOST_LINES)
    )
    return Found(query.label, short, full, note, detail, query.main)
