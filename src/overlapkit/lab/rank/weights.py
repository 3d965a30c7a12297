"""Weights that do not depend on the layout: their initial values, hashes, and places in files.

A model partitioned into stages and shards must start from the same values as the unpartitioned one,
and its trained pieces must be comparable with it. Megatron-Core's own `sharded_state_dict` gives
the place of each parameter in the full tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from numpy.typing import NDArray

_SCALE = 0.02
"""Standard deviation of GPT-2's initial weights."""


def pieces(model: Any) -> dict[str, ShardedTensor]:
    """Each parameter of an unwrapped model chunk, by name, as a piece of the full tensor."""
    shapes: dict[int, ShardedTensor] = {}
    for entry in _leaves(model.sharded_state_dict()):
        if isinstance(entry, ShardedTensor) and entry.data is not None:
            shapes[entry.data.data_ptr()] = entry
    return {
        name: shapes[parameter.data_ptr()]
        for name, parameter in model.named_parameters()
        if parameter.data_ptr() in shapes
    }


def _leaves(tree: Any) -> Iterable[Any]:
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    else:
        yield tree


def initialize(model: Any) -> None:
    """Set every matrix of an unwrapped model chunk to values that depend only on its place."""
    found = pieces(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        piece = found.get(name)
        if piece is None:
            # A gated layer is saved as two tensors: its values depend on the layout.
            key, offset, full = name, (), tuple(parameter.shape)
        else:
            front = piece.prepend_axis_num
            # The word embedding and a tied output layer have the same key.
            key, offset, full = piece.key, piece.global_offset, piece.global_shape
            key = f"{key}{offset[:front]}"
            offset, full = offset[front:], full[front:]
        values = torch.from_numpy(_values(key, full))
        if offset:
            window = tuple(
                slice(start, start + size)
                for start, size in zip(offset, parameter.shape, strict=True)
            )
            values = values[window]
        with torch.no_grad():
            parameter.copy_(values)


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


def save(path: Path, chunks: Iterable[Any], gradients: Mapping[str, torch.Tensor]) -> None:
    """Write a rank's weights, and gradients if any, with their places in the full tensors.

    Args:
        path: an .npz file.
        chunks: unwrapped model chunks.
        gradients: by "chunk:parameter".
    """
    arrays: dict[str, NDArray[Any]] = {}
    for number, chunk in enumerate(chunks):
        places = pieces(chunk)
        for name, parameter in chunk.named_parameters():
            place = places[name]
            label = "|".join(
                [
                    place.key,
                    ",".join(map(str, place.global_offset)),
                    ",".join(map(str, place.global_shape)),
                ]
            )
            arrays[f"weight|{label}"] = parameter.detach().float().cpu().numpy()
            gradient = gradients.get(f"{number}:{name}")
            if gradient is not None:
                arrays[f"gradient|{label}"] = gradient.float().cpu().numpy()
    with path.open("wb") as file:
        # Without allow_pickle, which NumPy before 2.1 would save as one more array.
        np.savez(file, **arrays)  # type: ignore[arg-type]
