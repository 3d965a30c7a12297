"""Weights that do not depend on the layout: their initial values, hashes, and places in files.

A model partitioned into stages and shards must start from the same values as the unpartitioned one,
and its trained pieces must be comparable with it. Megatron-Core's own `sharded_state_dict` gives
the place of each parameter in the full tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from numpy.typing import NDArray

_SCALE = 0.02
"""Standard deviation of GPT-2's initial weights."""


@dataclass(frozen=True)
class Piece:
    """A part of a parameter, and its place in the full tensor.

    Attributes:
        key: name of the full tensor.
        start: first row of the part in the parameter.
        shape: of the part.
        offset, full: where the part starts in the full tensor, and that tensor's shape.
        front: how many of the first axes stack layers or experts.
    """

    key: str
    start: int
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    full: tuple[int, ...]
    front: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of a tensor with the parameter's shape."""
        return tensor.narrow(0, self.start, self.shape[0]) if self.shape else tensor

    @property
    def label(self) -> str:
        """Key, place and full shape, as `overlapkit.lab.full_tensors` reads them."""
        return "|".join([self.key, *(",".join(map(str, at)) for at in (self.offset, self.full))])


def named_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters of an unwrapped model chunk, and buffers that training changes, by name."""
    # A router's bias for balancing experts is a buffer; it has a place as parameters have.
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def pieces(model: Any) -> dict[str, list[Piece]]:
    """The parts of each of `named_tensors` that has a place in a full tensor, by name.

    A gated layer has two parts: gate and value are partitioned separately.
    """
    entries: dict[int, list[ShardedTensor]] = {}
    # Where layers that predict several tokens have a copy of the embedding, 0.16 needs the group.
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for entry in _leaves(model.sharded_state_dict(metadata={"dp_cp_group": group})):
        if isinstance(entry, ShardedTensor) and entry.data is not None:
            entries.setdefault(entry.data.data_ptr(), [entry])
        elif isinstance(entry, ShardedTensorFactory):
            built = list(_leaves(entry.build()))
            if all(part.data.is_floating_point() and part.data.dim() for part in built):
                entries[entry.data.data_ptr()] = built
    return {
        name: [_piece(part, tensor) for part in entries[tensor.data_ptr()]]
        for name, tensor in named_tensors(model).items()
        if tensor.data_ptr() in entries
    }


def _piece(entry: ShardedTensor, whole: torch.Tensor) -> Piece:
    part = entry.data
    rows = (part.data_ptr() - whole.data_ptr()) // whole.element_size()
    return Piece(
        key=entry.key,
        start=rows // whole.stride(0) if whole.dim() else 0,
        shape=tuple(part.shape),
        offset=tuple(entry.global_offset),
        full=tuple(entry.global_shape),
        front=entry.prepend_axis_num,
    )


def _leaves(tree: Any) -> Iterable[Any]:
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        yield tree
        return
    for value in tree:
        yield from _leaves(value)


def initialize(model: Any) -> None:
    """Set every matrix of an unwrapped model chunk to values that depend only on its place."""
    found = pieces(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        for piece in found[name]:
            # The word embedding and a tied output layer have the same key.
            key = f"{piece.key}{piece.offset[: piece.front]}"
            values = torch.from_numpy(_values(key, piece.full[piece.front :]))
            window = tuple(
                slice(start, start + size)
                for start, size in zip(piece.offset[piece.front :], piece.shape, strict=True)
            )
            with torch.no_grad():
                piece.of(parameter).copy_(values[window])


def _values(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(_SCALE)
    return values


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """One hash of the bits of several tensors, in order."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(_bits(tensor))
    return total.hexdigest()


def _bits(tensor: torch.Tensor) -> bytes:
    # numpy has no bfloat16, so its bits are passed as bytes.
    bits: bytes = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return bits


def save(
    path: Path,
    chunks: Iterable[Any],
    gradients: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a rank's weights, and gradients if any, with their places in the full tensors.

    Args:
        path: an .npz file.
        chunks: unwrapped model chunks.
        gradients: by "chunk:parameter".
        weights: the same; None: those that the chunks have.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for number, chunk in enumerate(chunks):
        tensors = named_tensors(chunk)
        for name, places in pieces(chunk).items():
            own = f"{number}:{name}"
            weight = tensors[name] if weights is None else weights.get(own, tensors[name])
            for piece in places:
                arrays[f"weight|{piece.label}"] = _numbers(piece.of(weight))
                if own in gradients:
                    arrays[f"gradient|{piece.label}"] = _numbers(piece.of(gradients[own]))
    with path.open("wb") as file:
        # Without allow_pickle, which NumPy before 2.1 would save as one more array.
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _numbers(tensor: torch.Tensor) -> NDArray[Any]:
    numbers: NDArray[Any] = tensor.detach().float().cpu().numpy()
    return numbers
