"""Weights that do not depend on the layout: how they start, and how they are told apart.

A model cut into stages and shards must start from the same numbers as the whole one, and its
trained pieces must be laid beside it. Megatron-Core's own `sharded_state_dict` says which piece of
which whole tensor a parameter is.
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
    """Each parameter of an unwrapped model chunk, by its name there, as a piece of a whole."""
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
    """Give every matrix of an unwrapped model chunk numbers that follow from its place alone."""
    found = pieces(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        piece = found.get(name)
        if piece is None:
            # A gated layer is saved as two tensors; its layout has to stay the same then.
            key, offset, whole = name, (), tuple(parameter.shape)
        else:
            front = piece.prepend_axis_num
            # The word embedding and an output layer tied to it are one tensor.
            key, offset, whole = piece.key, piece.global_offset, piece.global_shape
            key = f"{key}{offset[:front]}"
            offset, whole = offset[front:], whole[front:]
        numbers = torch.from_numpy(_numbers(key, whole))
        if offset:
            window = tuple(
                slice(start, start + size)
                for start, size in zip(offset, parameter.shape, strict=True)
            )
            numbers = numbers[window]
        with torch.no_grad():
            parameter.copy_(numbers)


def _numbers(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    generator = np.random.default_rng(seed)
    numbers = generator.standard_normal(shape, dtype=np.float32)
    numbers *= np.float32(_SCALE)
    return numbers


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """One hash of tensors' bits, in order."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(_bits(tensor))
    return total.hexdigest()


def _bits(tensor: torch.Tensor) -> bytes:
    # numpy knows no bfloat16; its bits travel as bytes.
    bits: bytes = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return bits


def save(path: Path, chunks: Iterable[Any], gradients: Mapping[str, torch.Tensor]) -> None:
    """Write a rank's weights, and gradients where there are, with their places in the whole.

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
        np.savez(file, allow_pickle=False, **arrays)
