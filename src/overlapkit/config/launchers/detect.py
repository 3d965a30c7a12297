"""Which launcher a configuration is for, by what it contains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from overlapkit.config.launchers import nemo1, nemo_rl, others, verl
from overlapkit.config.launchers.tree import Tree, tree_of
from overlapkit.config.reading import Reading
from overlapkit.config.run import Launch, Settings
from overlapkit.config.yaml_file import Document

Reader = Callable[[Tree, Sequence[str], Reading | None, Launch | None], Settings]

_KINDS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Reader], ...] = (
    (nemo_rl.matches, nemo_rl.read),
    (verl.matches, verl.read),
    (nemo1.matches, nemo1.read),
)
_OF_BRIDGE = frozenset({"ddp", "comm_overlap", "mixed_precision"})
"""Sections that only Megatron-Bridge's configurations have."""


def reader_of(data: Mapping[str, Any]) -> Reader | None:
    """What reads a launcher's configuration; None where it is no launcher's that is read here."""
    if _OF_BRIDGE & data.keys() or str(data.get("_target_", "")).startswith("megatron.bridge"):
        return None
    return next((read for matches, read in _KINDS if matches(data)), None)


def read_of_launcher(
    document: Document, overrides: Sequence[str] = (), reading: Reading | None = None
) -> Settings | None:
    """The settings of a launcher's configuration; None where it is the framework's own.

    Raises:
        InputError: it is that of a program whose configurations are not read, or a key or value
            that no run can have.
    """
    data = document.data
    read = reader_of(data)
    if read is not None:
        found = read(tree_of(document), overrides, reading, None)
        return found if reading is None else reading.dated(found)
    no_model = not isinstance(data.get("model"), Mapping)
    if (not _OF_BRIDGE & data.keys() and no_model) or "_target_" in data:
        others.refuse_by_content(data, document.path)
    return None
