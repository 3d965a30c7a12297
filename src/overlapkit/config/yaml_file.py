"""Reads YAML as data: safely, with limits, and with the line of every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from overlapkit.config.places import Place
from overlapkit.config.text_file import read_text
from overlapkit.errors import InputError
from overlapkit.output.console import encodable

MAX_DEPTH = 60
MAX_NODES = 100_000
"""Values and keys, with those of an alias counted each time; Megatron-Bridge writes about 1,500."""

MARKED_LEVELS = 6
"""Levels of keys whose places are kept: verl's keys are five levels deep."""

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without libyaml: slower, the same result.
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]


class _Loader(_SafeLoader):
    """The safe loader, with integers limited to 64 bits: no field takes more, nor does JSON."""


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node) if len(node.value) < 100 else 2**63
    if not -(2**63) <= value < 2**63:
        raise yaml.constructor.ConstructorError(
            problem="a whole number of more than 64 bits", problem_mark=node.start_mark
        )
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_READS_AS = {
    "bool": "true or false",
    "null": "null",
    "int": "a number",
    "float": "a number",
    "timestamp": "a date",
}
Mark = tuple[int, int]
"""Line and column, from 1."""
_NAME_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "value"))


@dataclass(frozen=True)
class Document:
    """A mapping read from a file, and the places of its keys.

    Attributes:
        path: the file, as the user named it.
        data: the mapping.
        places: the place of each key of the first `MARKED_LEVELS` levels: ("model", "num_layers").
    """

    path: str
    data: dict[str, Any]
    places: dict[tuple[str, ...], Place] = field(default_factory=dict)

    def place(self, *keys: str) -> Place:
        """The place of a key, or the file alone where that is not known."""
        return self.places.get(keys, Place(self.path))

    def where(self, *keys: str) -> str:
        """``file:line`` of a key, or the file alone where the line is not known."""
        return self.place(*keys).in_messages


class YamlProblem(Exception):
    """Why a text is not a configuration's YAML, and the line, from 1, where that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def read_yaml(path: str | Path) -> Document:
    """The mapping in a YAML file.

    Raises:
        InputError: not a readable text file, not valid YAML, not one mapping, a key given twice,
            or larger or deeper than a configuration can be.
    """
    name = encodable(str(path))
    text = read_text(str(path), what="run configuration")
    try:
        data, marks = load_yaml(text)
    except YamlProblem as problem:
        raise InputError(
            f"{name}:{problem.line}: {problem}" if problem.line else f"{name}: {problem}"
        ) from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else f"the single value {str(data)[:40]!r}"
        raise InputError(
            f"{name}: contains {kind}, not a mapping of sections such as model and ddp"
        )
    places = {keys: Place(name, line, column) for keys, (line, column) in marks.items()}
    return Document(name, data, places)


def load_yaml(text: str) -> tuple[Any, dict[tuple[str, ...], Mark]]:
    """The one value in a YAML text, and the places of its keys of the first levels.

    Raises:
        YamlProblem: it is not valid, contains more than one document or a key twice, refers to
            itself, or is larger or deeper than a configuration can be.
    """
    try:
        # The loader recurses in C, where deep nesting would end the process: check the depth first.
        _check_events(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            marks = _check_nodes(node)
            return _construct(loader, node), marks
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise YamlProblem(f"not valid YAML: {_cause(error, text, line)}", line) from None
    except UnicodeEncodeError:
        raise YamlProblem("is not UTF-8 text") from None
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise YamlProblem(f"not valid YAML: {str(error).splitlines()[0]}", line) from None


_NOT_OF_ITS_KIND = (ValueError, OverflowError, LookupError, AttributeError, TypeError)
"""What PyYAML raises for a date with month 13, ``!!bool maybe`` or ``!!int ""``."""


def _construct(loader: Any, root: yaml.Node | None) -> Any:
    if root is None:
        return None
    try:
        return loader.construct_document(root)
    except _NOT_OF_ITS_KIND:
        nodes = [root]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.ScalarNode):
                try:
                    _Loader("").construct_object(node)
                except _NOT_OF_ITS_KIND:
                    line = node.start_mark.line + 1
                    what = f"{node.value[:40]!r} is not a valid {node.tag.rpartition(':')[2]}"
                    raise YamlProblem(f"not valid YAML: {what}", line) from None
            else:
                entries = node.value if isinstance(node, yaml.CollectionNode) else []
                for entry in entries:
                    nodes.extend(entry if isinstance(entry, tuple) else (entry,))
        raise YamlProblem("not valid YAML: a value is not of its kind") from None


def _cause(error: yaml.MarkedYAMLError, text: str, line: int | None) -> str:
    cause = str(error.problem or error.context)
    if "could not determine a constructor" in cause:
        return "tags are not supported; write the plain value (" + cause.rpartition(" ")[2] + ")"
    shown = text.splitlines()[line - 1 : line] if line else []
    if shown and "\t" in shown[0][: len(shown[0]) - len(shown[0].lstrip())]:
        cause += "; indent with spaces instead of tabs"
    return cause


def _check_events(text: str) -> None:
    """Refuse a text that nests deeper, is larger or has more documents than a configuration."""
    loader: Any = _Loader(text)
    depth = count = documents = 0
    try:
        while loader.check_event():
            event = loader.get_event()
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
            line = event.start_mark.line + 1
            if depth > MAX_DEPTH:
                raise YamlProblem("nested too deeply for a configuration", line)
            if count > MAX_NODES:
                raise YamlProblem("contains more values than a configuration can", line)
            if documents > 1:
                raise YamlProblem("contains a second YAML document; keep one per file", line)
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node | None) -> dict[tuple[str, ...], Mark]:
    """Places of the keys of the first levels. Refuses duplicate keys, recursive aliases."""
    marks: dict[tuple[str, ...], Mark] = {}
    if root is None:
        return marks
    _measure(root, {})
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        marks[(_name(key),)] = _mark(key)
        for inner, content in value.value if isinstance(value, yaml.MappingNode) else ():
            marks[(key.value, _name(inner))] = _mark(inner)
            _mark_below(content, (key.value, inner.value), marks)
    return marks


def _mark_below(
    node: yaml.Node, above: tuple[str, ...], marks: dict[tuple[str, ...], Mark]
) -> None:
    """Places of the keys of a node, down to the deepest level that any reader asks for."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        keys = (*above, str(key.value))
        marks[keys] = _mark(key)
        if len(keys) < MARKED_LEVELS:
            _mark_below(value, keys, marks)


def _mark(node: yaml.Node) -> Mark:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _name(key: yaml.Node) -> str:
    if key.tag not in _NAME_TAGS:
        kind = _READS_AS.get(key.tag.rpartition(":")[2], "something else")
        raise YamlProblem(
            f"the key {key.value!r} is read as {kind}; a key is a name: quote it",
            key.start_mark.line + 1,
        )
    return str(key.value)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Number of values in a node and their depth, aliases included; each node is visited once.

    An alias comes after its anchor, so the recursion is not deeper than the text, and
    `_check_events` has limited the text's depth.
    """
    line = node.start_mark.line + 1
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise YamlProblem("an alias refers to a value that contains it", line)
        return measured
    known[id(node)] = None
    size, depth = 1, 0
    here: set[str] = set()
    for entry in node.value if isinstance(node, yaml.CollectionNode) else ():
        value = entry
        if isinstance(node, yaml.MappingNode):
            key, value = entry
            at = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlProblem("a key must be a name, not a list or a mapping", at)
            if key.value in here and key.value != "<<":
                raise YamlProblem(f"the key {key.value!r} is given twice", at)
            here.add(key.value)
            size += 1
        more, deeper = _measure(value, known)
        size, depth = size + more, max(depth, deeper)
    if size > MAX_NODES:
        raise YamlProblem(
            "its aliases expand to more values than a configuration can contain", line
        )
    if depth >= MAX_DEPTH:
        raise YamlProblem("its aliases nest too deeply for a configuration", line)
    known[id(node)] = size, depth + 1
    return size, depth + 1
