"""Full tensors assembled from the pieces of the ranks, and the distance between two models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Distance:
    """How far one model's tensors are from another's.

    Attributes:
        differing: tensors that differ in at least one bit.
        tensors: tensors compared.
        relative: the largest ||a - b|| / ||b|| of a tensor, with b the reference; infinite where
            an element is NaN.
        worst: the name of that tensor.
    """

    differing: int
    tensors: int
    relative: float
    worst: str

    @property
    def identical(self) -> bool:
        """No bit differs."""
        return self.differing == 0


def assembled(paths: Iterable[Path], kind: str) -> Tensors:
    """Full tensors from what the ranks saved.

    Args:
        paths: one .npz file per rank, as `overlapkit.lab.rank.weights.save` writes them.
        kind: "weight" or "gradient".

    Raises:
        ValueError: two ranks have different values for the same piece, or a piece is missing.
    """
    found: Tensors = {}
    filled: dict[str, NDArray[np.bool_]] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            for label in arrays.files:
                of_kind, key, offset, shape = label.split("|")
                if of_kind == kind:
                    _place(found, filled, key, _integers(offset), _integers(shape), arrays[label])
    for key, covered in filled.items():
        if not covered.all():
            raise ValueError(f"{key}: no rank has {np.count_nonzero(~covered)} of its elements")
    return found


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _place(
    found: Tensors,
    filled: dict[str, NDArray[np.bool_]],
    key: str,
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    piece: NDArray[Any],
) -> None:
    if key not in found:
        found[key] = np.zeros(shape, dtype=np.float32)
        filled[key] = np.zeros(shape, dtype=bool)
    # Layers are stacked along axes before the piece's own.
    piece = piece.reshape((1,) * (len(shape) - piece.ndim) + piece.shape)
    sizes: tuple[int, ...] = piece.shape
    window = tuple(slice(start, start + size) for start, size in zip(offset, sizes, strict=True))
    if filled[key][window].any() and not np.array_equal(found[key][window], piece, equal_nan=True):
        raise ValueError(f"{key}: ranks that have the same piece of it disagree")
    found[key][window] = piece
    filled[key][window] = True


FLOOR = 1e-3
"""Of the elements' root mean square in the model's median tensor: a tensor below it counts as one
at it.

Some gradients are zero but for rounding, such as that of the bias of `qk_layernorm`'s keys, which
adds the same to all scores that a softmax then compares. Two such tensors have nothing in common,
at 1e-10 of the median; a tensor whose gradient is small, 1e-5 of it, is still judged by its size.
"""


def relatives(tensors: Tensors, reference: Tensors) -> dict[str, float]:
    """||a - b|| / ||b|| of every tensor that differs in a bit; infinite where an element is NaN.

    ||b|| is at least that of a tensor at the `FLOOR`.

    Raises:
        ValueError: their names or shapes differ.
    """
    if tensors.keys() != reference.keys():
        raise ValueError(f"different tensors: {sorted(tensors.keys() ^ reference.keys())}")
    norms = {name: float(np.linalg.norm(b.astype(np.float64))) for name, b in reference.items()}
    typical = [norm / math.sqrt(reference[name].size) for name, norm in norms.items() if norm]
    floor = FLOOR * statistics.median(typical) if typical else 1.0
    found = {}
    for name, theirs in reference.items():
        ours = tensors[name]
        if ours.shape != theirs.shape:
            raise ValueError(f"{name}: {ours.shape} is not {theirs.shape}")
        if np.array_equal(ours, theirs):
            continue
        norm = max(norms[name], floor * math.sqrt(theirs.size))
        far = float(np.linalg.norm(ours.astype(np.float64) - theirs)) / norm
        # A NaN is farther away than any number.
        found[name] = math.inf if math.isnan(far) else far
    return found


def distance(tensors: Tensors, reference: Tensors) -> Distance:
    """How far `tensors` are from `reference`.

    Raises:
        ValueError: their names or shapes differ.
    """
    found = relatives(tensors, reference)
    worst = max(found, key=lambda name: found[name], default="")
    return Distance(len(found), len(reference), found.get(worst, 0.0), worst)
