"""Settings from what a launcher's configuration sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron.bridge.training.versions import spoken
from overlapkit.config.launchers.origin import Origin
from overlapkit.config.launchers.tree import Mapped, Tree
from overlapkit.config.overrides import parse_override
from overlapkit.config.reading import Reading
from overlapkit.config.run import Launch, Settings, read_settings
from overlapkit.config.yaml_file import Document

MOST_NAMED = 6
"""Keys that one sentence names."""


def settings_of(
    tree: Tree,
    mapped: Mapped,
    launch: Launch,
    origin: Origin,
    overrides: Sequence[str] = (),
    reading: Reading | None = None,
) -> Settings:
    """The settings of a launcher's configuration, with overrides of Megatron's own keys on top.

    Args:
        tree: the configuration.
        mapped: what it sets.
        launch: the GPUs and the environment of its job.
        origin: whose it is; what was ignored or not resolved is added to its remarks.
        overrides: ``section.key=value``.
        reading: for which versions and how strictly it is read.

    Raises:
        InputError: a key or value that no run can have.
    """
    data: dict[str, Any] = {"model": {}, "ddp": {}, "optimizer": {}}
    for dotted, value in {**mapped.defaults, **mapped.values}.items():
        section, _, key = dotted.partition(".")
        data.setdefault(section, {})[key] = value
    places = {tuple(dotted.split(".")): place for dotted, place in mapped.where.items()}
    allowed = reading is not None and reading.allow_unknown
    parsed = [parse_override(text, data, allow_unknown=allowed) for text in overrides]
    settings = read_settings(Document(tree.path, data, places), parsed, reading)
    remarks = [*origin.remarks]
    if mapped.ignored:
        remarks.append(f"not passed on to Megatron-Core by {origin.name}: {_named(mapped.ignored)}")
    if tree.unresolved:
        remarks.append(f"computed at start, so not known here: {_named(tree.unresolved)}")
    return replace(
        settings,
        asked=frozenset(mapped.values) | settings.overridden,
        launch=launch,
        origin=replace(origin, remarks=tuple(remarks)),
    )


def _named(keys: Sequence[str]) -> str:
    more = len(keys) - MOST_NAMED
    return spoken(keys if more <= 0 else [*keys[:MOST_NAMED], f"{more} more"])


def whole_number(value: Any) -> int | None:
    """A count of GPUs or nodes; None where it is no whole number above 0."""
    return value if type(value) is int and value > 0 else None


def product(nodes: Any, each: Any) -> int | None:
    """GPUs of a job from its nodes and the GPUs of each; None where either is not known."""
    n, m = whole_number(nodes), whole_number(each)
    return n * m if n and m else None
