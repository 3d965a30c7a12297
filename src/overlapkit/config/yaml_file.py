"""Reads a YAML file as data: safely, bounded, with the line of every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from overlapkit.errors import InputError

MAX_BYTES = 8 * 1024 * 1024
"""Larger than any run configuration by two orders of magnitude."""

MAX_DEPTH = 60

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML without libyaml: slower, the same result.
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]


@dataclass(frozen=True)
class Document:
    """A mapping read from a file, and where its keys stand.

    Attributes:
        path: the file, as the user named it.
        data: the mapping.
        lines: line, from 1, of each key of the first two levels: ("model", "num_layers").
    """

    path: str
    data: dict[str, Any]
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, *keys: str) -> str:
        """``file:line`` of a key, or the file alone where the line is not known."""
        line = self.lines.get(keys)
        return f"{self.path}:{line}" if line else self.path


def read_yaml(path: str | Path) -> Document:
    """The mapping in a YAML file.

    Raises:
        InputError: not a readable text file, not valid YAML, not one mapping, a key given twice,
            or larger or deeper than a configuration can be.
    """
    text = _read_text(Path(path), str(path))
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines = _check(node, str(path))
        data = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(
            f"{path}{line}: not valid YAML: {error.problem or error.context}"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply for a configuration") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: holds {type(data).__name__}, not a mapping of sections such as model and ddp"
        )
    return Document(str(path), data, lines)


def _read_text(path: Path, name: str) -> str:
    if path.is_dir():
        raise InputError(f"{name}: is a folder; name the configuration file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: is not a regular file")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MiB, not a run configuration")
    if b"\0" in raw:
        raise InputError(f"{name}: is a binary file, not a YAML configuration")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{line}: is not UTF-8 text") from None


def _check(node: yaml.Node | None, path: str) -> dict[tuple[str, ...], int]:
    """Lines of the keys of the first two levels; refuses duplicates and bottomless nesting.

    Each node is visited once: aliases would otherwise make a small file a long walk.
    """
    lines: dict[tuple[str, ...], int] = {}
    seen: set[int] = set()
    stack: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(node, ())]
    while stack:
        current, keys = stack.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if len(keys) > MAX_DEPTH:
            line = current.start_mark.line + 1
            raise InputError(f"{path}:{line}: nested too deeply for a configuration")
        if isinstance(current, yaml.SequenceNode):
            stack.extend((child, (*keys, "")) for child in current.value)
        if not isinstance(current, yaml.MappingNode):
            continue
        here: set[str] = set()
        for key, value in current.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in here and name != "<<":
                raise InputError(f"{path}:{line}: the key {name!r} is given twice")
            here.add(name)
            path_here = (*keys, name)
            if len(path_here) <= 2:
                lines[path_here] = line
            stack.append((value, path_here))
    return lines
