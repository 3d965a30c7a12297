"""Gathers and reductions of parts of different sizes over gloo, which knows only equal ones.

Experts with tensor parallelism gather as many tokens of each rank as its router sent. NCCL takes
the sizes as they are. Here the parts are padded to the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as nn


def _padded(part: torch.Tensor, rows: int) -> torch.Tensor:
    """A part with zeros below, up to a number of rows."""
    return nn.pad(part, (0, 0) * (part.dim() - 1) + (0, rows - len(part)))


def _rows(parts: Sequence[torch.Tensor]) -> int | None:
    """Rows of the largest part; None where all are equal, or are no rows."""
    if any(part.dim() == 0 for part in parts) or len({len(part) for part in parts}) == 1:
        return None
    return max(len(part) for part in parts)


def allow_uneven_sizes() -> None:
    """Let `all_gather` and `reduce_scatter` take parts of different sizes, until the process ends.

    Calls that do not wait for the result stay as they are: Megatron-Core makes none with different
    sizes.
    """
    gather: Callable[..., Any] = dist.all_gather
    scatter: Callable[..., Any] = dist.reduce_scatter

    def all_gather(
        tensor_list: list[torch.Tensor], tensor: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        rows = _rows(tensor_list)
        if rows is None:
            return gather(tensor_list, tensor, *args, **kwargs)
        own = _padded(tensor, rows)
        found = [torch.empty_like(own) for _ in tensor_list]
        done = gather(found, own, *args, **kwargs)
        for part, gathered in zip(tensor_list, found, strict=True):
            part.copy_(gathered[: len(part)])
        return done

    def reduce_scatter(
        output: torch.Tensor, input_list: list[torch.Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        rows = _rows(input_list)
        if rows is None:
            return scatter(output, input_list, *args, **kwargs)
        reduced = output.new_empty((rows, *output.shape[1:]))
        done = scatter(reduced, [_padded(part, rows) for part in input_list], *args, **kwargs)
        output.copy_(reduced[: len(output)])
        return done

    dist.all_gather = all_gather
    dist.reduce_scatter = reduce_scatter
