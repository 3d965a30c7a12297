"""Full tensors from the pieces of the ranks, and the distance between two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overlapkit.lab.full_tensors import assembled, distance

FULL = np.arange(12, dtype=np.float32).reshape(4, 3)


def saved(folder: Path, rank: int, **pieces: Any) -> Path:
    """A rank's file; a piece is named ``kind|key|offset|shape``, as labels are."""
    path = folder / f"rank{rank}.npz"
    np.savez(path, **pieces)
    return path


def test_shards_are_assembled(tmp_path: Path) -> None:
    paths = [
        saved(tmp_path, 0, **{"weight|w|0,0|4,3": FULL[:2], "gradient|w|0,0|4,3": FULL[:2] * 2}),
        saved(tmp_path, 1, **{"weight|w|2,0|4,3": FULL[2:], "gradient|w|2,0|4,3": FULL[2:] * 2}),
    ]
    assert np.array_equal(assembled(paths, "weight")["w"], FULL)
    assert np.array_equal(assembled(paths, "gradient")["w"], 2 * FULL)


def test_layers_are_stacked_along_the_first_axis(tmp_path: Path) -> None:
    paths = [saved(tmp_path, rank, **{f"weight|w|{rank},0|4,3": FULL[rank]}) for rank in range(4)]
    assert np.array_equal(assembled(paths, "weight")["w"], FULL)


def test_copies_must_agree(tmp_path: Path) -> None:
    label = "weight|w|0,0|4,3"
    paths = [saved(tmp_path, 0, **{label: FULL}), saved(tmp_path, 1, **{label: FULL})]
    assert np.array_equal(assembled(paths, "weight")["w"], FULL)
    other = FULL.copy()
    other[3, 2] = np.nextafter(other[3, 2], np.float32(0))
    with pytest.raises(ValueError, match="w: ranks that have the same piece of it disagree"):
        assembled([paths[0], saved(tmp_path, 1, **{label: other})], "weight")


def test_nothing_may_be_missing(tmp_path: Path) -> None:
    path = saved(tmp_path, 0, **{"weight|w|0,0|4,3": FULL[:3]})
    with pytest.raises(ValueError, match="w: no rank has 3 of its elements"):
        assembled([path], "weight")


def test_one_bit_is_a_difference() -> None:
    other = FULL.copy()
    other[1, 1] = np.nextafter(other[1, 1], np.float32(9))
    apart = distance({"w": other, "v": FULL}, {"w": FULL, "v": FULL})
    assert (apart.differing, apart.tensors, apart.worst) == (1, 2, "w")
    assert not apart.identical
    assert 0 < apart.relative < 1e-7
    assert distance({"w": FULL}, {"w": FULL}).identical


def test_distance_is_relative_to_the_reference() -> None:
    apart = distance({"a": 2 * FULL, "b": 1.5 * FULL}, {"a": FULL, "b": FULL})
    assert apart.relative == pytest.approx(1.0)
    assert apart.worst == "a"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_the_largest_distance(value: float) -> None:
    broken = FULL.copy()
    broken[0, 0] = value
    apart = distance({"a": broken, "b": 100 * FULL}, {"a": FULL, "b": FULL})
    assert apart.worst == "a"
    assert apart.relative == np.inf


def test_other_tensors_or_shapes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"different tensors: \['v'\]"):
        distance({"w": FULL, "v": FULL}, {"w": FULL})
    with pytest.raises(ValueError, match="w: "):
        distance({"w": FULL.T}, {"w": FULL})


def test_rounding_of_a_gradient_that_is_zero_is_no_difference() -> None:
    def model(noise: float, small: float = 1e-7) -> dict[str, np.ndarray]:
        values = {"a": 0.02, "b": 1.0, "small": small, "zero but for rounding": noise}
        return {name: np.full(8, value, np.float32) for name, value in values.items()}

    reference = model(1e-12)
    assert distance(model(-4e-12), reference).relative < 1e-6
    # A gradient that is only small is judged.
    assert distance(model(1e-12, small=2e-7), reference).worst == "small"
    assert distance(model(1e-12, small=2e-7), reference).relative > 1e-3
