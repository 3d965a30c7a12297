"""Counts what a step communicates: calls and bytes of each operator of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NOTHING_SENT = ("barrier", "monitored_barrier_", "recv_", "recv_any_source_")
"""Not counted: these send nothing; a message is counted where it is sent."""


class CollectiveCount(TorchDispatchMode):  # type: ignore[misc]
    """While it is entered, counts this rank's collectives and sends.

    Attributes:
        found: name of the operator, such as "allreduce_", to calls and bytes of the tensors passed
            to it: what is reduced, sent, or filled by a gather.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[int, int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "c10d" and name not in _NOTHING_SENT:
            calls, size = self.found.get(name, (0, 0))
            # The first argument with tensors: the others are the same data, gathered or scattered.
            tensors = next((held for held in map(list, map(_tensors, args)) if held), [])
            size += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.found[name] = (calls + 1, size)
        return func(*args, **(kwargs or {}))


def counted(step: Callable[[], None]) -> dict[str, tuple[int, int]]:
    """What `step` communicates: operator to calls and bytes."""
    with CollectiveCount() as count:
        step()
    return dict(sorted(count.found.items()))


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
