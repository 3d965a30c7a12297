"""When the numbers of a run are the unpartitioned model's, and what is said where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from overlapkit.lab.measurements import MeasuredVariant, Observations, ObservedBlock
from overlapkit.lab.own.numbers import (
    Compared,
    Models,
    compare,
    equal_evidence,
    numbers_verdict,
    wrong_evidence,
)
from overlapkit.lab.protocol import VariantResult, weights_file

STEPS = 3
NAMES = ("layers.0.weight", "output.weight")


class Runs:
    """A run of two ranks and the unpartitioned model, as files and results.

    Args:
        folder: for the files.
        off: how far the run's tensors are off after each step, relative to each element.
        losses: how far its losses are.
        half: likewise for the unpartitioned model in half precision; None without one.
    """

    def __init__(
        self,
        folder: Path,
        off: tuple[float, float, float] = (0.0, 0.0, 0.0),
        *,
        losses: float = 0.0,
        half: float | None = None,
        exact: bool = False,
        unrestored: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        blocks = {"whole": self._block(0, "model", 1, (0.0,) * 3, 0.0)}
        if half is not None:
            blocks["half"] = self._block(1, "model", 1, (half,) * 3, half)
        blocks["run"] = self._block(2, "run", 2, off, losses, unrestored)
        self.models = Models(
            Observations(blocks, dict.fromkeys(blocks, folder)),
            ("whole", "model"),
            None if half is None else ("half", "model"),
            exact,
        )

    def compare(self) -> Compared:
        return compare(self.models, "run", "run")

    def _block(
        self,
        number: int,
        variant: str,
        ranks: int,
        off: tuple[float, ...],
        losses: float,
        unrestored: tuple[str, ...] = (),
    ) -> ObservedBlock:
        results = []
        for rank in range(ranks):
            for step in range(1, STEPS + 1):
                path = self.folder / weights_file(number, variant, rank, step)
                self._save(path, rank, ranks, off[step - 1])
            results.append(
                VariantResult(
                    name=variant,
                    losses=[5.0 * (1 + losses)] * STEPS,
                    evaluations=[5.0],
                    unrestored=list(unrestored),
                )
            )
        return ObservedBlock(number, None, {variant: MeasuredVariant(variant, results)}, {}, "cpu")

    @staticmethod
    def _save(path: Path, rank: int, ranks: int, off: float) -> None:
        pieces = {}
        for number, name in enumerate(NAMES):
            whole = np.arange(1, 9, dtype=np.float32) + number
            changed = (whole * (1 + (off if number == 1 else 0.0))).astype(np.float32)
            size = len(whole) // ranks
            label = f"weight|{name}|{rank * size}|{len(whole)}"
            pieces[label] = changed[rank * size : (rank + 1) * size]
        np.savez(path, **pieces)


def test_a_run_without_a_bit_that_differs_is_identical(tmp_path: Path) -> None:
    compared = Runs(tmp_path, exact=True).compare()
    assert compared.identical
    assert [step.step for step in compared.steps] == [1, 2, 3]
    assert "no bit" in equal_evidence(compared, half=False)


def test_rounding_is_no_difference_where_sums_are_reordered(tmp_path: Path) -> None:
    compared = Runs(tmp_path, (0.0, 1e-6, 1e-6), losses=1e-7).compare()
    assert compared.equal
    assert not compared.identical
    assert "sums are added in another order" in equal_evidence(compared, half=False)


def test_rounding_is_a_difference_where_no_sum_is_reordered(tmp_path: Path) -> None:
    assert not Runs(tmp_path, (0.0, 0.0, 1e-6), exact=True).compare().equal


def test_what_is_wrong_is_named_with_its_first_step(tmp_path: Path) -> None:
    compared = Runs(tmp_path, (0.0, 0.5, 2.0)).compare()
    assert compared.first_wrong is not None
    assert compared.first_wrong.step == 2
    assert compared.first_wrong.apart.wrong == ("output.weight",)
    said = wrong_evidence(compared)
    assert said.startswith("from step 2 on: 1 of 2 tensors are wrong, by up to 5.0e-01")
    assert "output.weight 5.0e-01" in said
    assert "after step 3 1, by up to 2.0e+00" in said


@pytest.mark.parametrize("off", [math.nan, math.inf])
def test_a_tensor_that_is_not_finite_is_wrong(tmp_path: Path, off: float) -> None:
    compared = Runs(tmp_path, (0.0, 0.0, off)).compare()
    assert not compared.equal
    assert compared.first_wrong is not None
    assert compared.first_wrong.step == 3


def test_a_wrong_loss_is_a_difference_of_its_own(tmp_path: Path) -> None:
    compared = Runs(tmp_path, losses=1e-3).compare()
    assert not compared.equal
    assert "the loss of step 1: 5.005000 instead of 5.000000, and 2 more" in wrong_evidence(
        compared
    )


def test_half_precision_may_be_as_far_as_the_unpartitioned_model_in_it(tmp_path: Path) -> None:
    assert Runs(tmp_path, (0.02, 0.02, 0.02), losses=0.0, half=0.01).compare().equal
    assert not Runs(tmp_path, (0.02, 0.02, 0.05), losses=0.0, half=0.01).compare().equal


def test_what_a_checkpoint_lost_is_kept(tmp_path: Path) -> None:
    assert Runs(tmp_path, unrestored=("exp_avg",)).compare().unrestored == ("exp_avg",)


def test_tensors_that_cannot_be_compared_are_a_difference(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    path = tmp_path / weights_file(2, "run", 1, 2)
    np.savez(path, **{"weight|other|0|4": np.zeros(4, dtype=np.float32)})
    compared = runs.compare()
    assert not compared.equal
    assert compared.mismatch.startswith("after step 2: ")


def test_in_half_precision_too_no_bit_may_differ_where_no_sum_is_reordered(tmp_path: Path) -> None:
    assert (
        Runs(tmp_path, (0.01, 0.01, 0.01), losses=0.01, half=0.01, exact=True).compare().identical
    )
    other = Runs(tmp_path, (0.01, 0.01, 0.011), losses=0.01, half=0.01, exact=True).compare()
    assert not other.equal


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Compared]:
    def make(*off: float, half: float | None = None) -> Compared:
        folder = tmp_path / f"{off}{half}"
        folder.mkdir()
        return Runs(folder, (off[0], off[1], off[2]), half=half).compare()

    return make


def test_a_wrong_number_that_half_precision_hides_is_seen_in_fp32(
    runs: Callable[..., Compared],
) -> None:
    half, full = runs(0.01, 0.01, 0.01, half=0.01), runs(1e-3, 1e-3, 1e-3)
    assert half.equal
    verdict = numbers_verdict("claim", half, full=full)
    assert verdict.outcome == "not confirmed"
    assert verdict.evidence.startswith("in fp32, from step 1 on: 1 of 2 tensors are wrong")
    good = numbers_verdict("claim", half, full=runs(0.0, 0.0, 0.0))
    assert good.outcome == "confirmed"
    assert "in its own precision, weights differ by at most 1.0e-02" in good.evidence


def test_experts_chosen_otherwise_on_one_part_of_the_data_prove_nothing(
    runs: Callable[..., Compared],
) -> None:
    right, late, early = runs(0.0, 1e-7, 1e-7), runs(0.0, 0.0, 1e-3), runs(1e-3, 1e-3, 1e-3)
    for one, other in ((late, right), (right, late)):
        verdict = numbers_verdict("claim", one, again=other)
        assert verdict.outcome == "not testable here"
        assert "from step 3 on" in verdict.evidence
    assert numbers_verdict("claim", right, again=right).outcome == "confirmed"
    # Wrong on both parts, or from the first step, is wrong.
    assert numbers_verdict("claim", late, again=late).outcome == "not confirmed"
    assert numbers_verdict("claim", early, again=right).outcome == "not confirmed"
    assert numbers_verdict("claim", late).outcome == "not confirmed"
