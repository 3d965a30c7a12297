"""When a case equals the unpartitioned model."""

from __future__ import annotations

import numpy as np
import pytest

from overlapkit.lab.full_tensors import Tensors
from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.judge import BF16, FULL, Reference, compared
from overlapkit.lab.measurements import MeasuredVariant, mean_losses
from overlapkit.lab.protocol import VariantResult

WHOLE = np.ones(100, dtype=np.float32)


def off_by(share: float) -> Tensors:
    """Weights whose distance from `WHOLE` is this share of its norm."""
    return {"weight": WHOLE * np.float32(1 + share)}


def measured(*losses: float | None, unrestored: tuple[str, ...] = ()) -> MeasuredVariant:
    rank = VariantResult(name="one", losses=list(losses), unrestored=list(unrestored))
    return MeasuredVariant("one", [VariantResult(name="one"), rank])


def fate(case: Case, share: float, *losses: float | None) -> str:
    references = {FULL: Reference({"weight": WHOLE}, [1.0, 2.0], [])}
    if case.precision != "fp32":
        references[BF16] = Reference(off_by(1e-3), [1.0, 2.0], [])
    weights = off_by(share)
    return compared(case, measured(*(losses or (1.0, 2.0))), weights, references).kind


def test_where_no_sum_is_reordered_no_bit_may_differ() -> None:
    assert fate(Case(pp=2), 0.0) == "equal"
    assert fate(Case(pp=2), 1e-6) == "different"
    assert fate(Case(pp=2, clip=True), 1e-6) == "equal"


def test_where_sums_are_reordered_they_may_within_rounding() -> None:
    assert fate(Case(dp=2), 1e-6) == "equal"
    assert fate(Case(dp=2), 1e-4) == "different"
    assert fate(Case(dp=2), float("nan")) == "different"


def test_a_partitioned_model_in_bf16_is_about_as_near_to_fp32_as_the_whole_one() -> None:
    assert fate(Case(dp=2, precision="bf16"), 3e-3) == "equal"
    assert fate(Case(dp=2, precision="bf16"), 1e-2) == "different"


@pytest.mark.parametrize("losses", [(1.0, 2.1), (None, 2.0)])
def test_a_loss_decides_as_well(losses: tuple[float | None, ...]) -> None:
    assert fate(Case(dp=2), 0.0, *losses) == "different"


def test_in_bf16_too_no_bit_may_differ_where_no_sum_is_reordered() -> None:
    assert fate(Case(pp=2, precision="bf16"), 1e-3) == "equal"
    assert fate(Case(pp=2, precision="bf16"), 2e-3) == "different"


def test_a_refused_checkpoint_is_not_a_wrong_number() -> None:
    references = {FULL: Reference({"weight": WHOLE}, [1.0], [])}
    refusing = VariantResult(name="one", losses=[1.0], unsaved="AssertionError: empty bucket")
    found = compared(Case(), MeasuredVariant("one", [refusing]), off_by(0.0), references)
    assert (found.kind, found.what) == ("refused", "AssertionError: empty bucket")


def test_what_a_checkpoint_did_not_bring_back_is_a_difference() -> None:
    references = {FULL: Reference({"weight": WHOLE}, [1.0], [])}
    found = compared(Case(), measured(1.0, unrestored=("step",)), off_by(0.0), references)
    assert found.kind == "different" and "step" in found.what


def test_tensors_that_are_missing_are_a_difference() -> None:
    references = {FULL: Reference({"weight": WHOLE, "bias": WHOLE}, [1.0], [])}
    assert compared(Case(), measured(1.0), off_by(0.0), references).kind == "different"


def test_the_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    assert mean_losses({2: [1.0, 0.0], 3: [3.0, 1.0]}) == [2.0, 0.5]
    assert mean_losses({2: [1.0], 3: [None]}) == [None]
    assert mean_losses({}) == []
