"""Which combinations the grid trains, and how it judges them; torch-free."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from overlapkit.lab.measurements import MeasuredVariant, Observations, ObservedBlock
from overlapkit.lab.protocol import VariantResult, weights_file
from overlapkit.lab.scenario import CONFIRMED, NOT_CONFIRMED, Setting, Verdict
from overlapkit.lab.scenarios import grid
from overlapkit.lab.scenarios.grid import Combination


def test_the_grid_asks_the_rules_and_needs_no_torch() -> None:
    code = (
        "import sys; from overlapkit.lab.scenarios import grid; assert grid.combinations(2);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("ranks", grid.RANKS)
def test_combinations_fit_and_have_names_of_their_own(ranks: int) -> None:
    found = grid.combinations(ranks)
    assert {one.ranks for one in found} == {ranks}
    assert len({one.name for one in found}) == len(found)
    assert all(one.layers % (one.pp * one.vpp) == 0 for one in found)


def test_every_axis_is_walked() -> None:
    found = [one for ranks in grid.RANKS for one in grid.combinations(ranks)]
    assert len(found) > 300
    assert {one.overlap for one in found} == set(grid.OVERLAPS)
    assert {one.bucket for one in found} == {None, *grid.BUCKETS}
    assert {one.p2p for one in found} == {None, *grid.P2P}
    assert {(one.tp, one.pp, one.dp) for one in found if one.ranks == 4} == {
        (1, 1, 4),
        (1, 2, 2),
        (1, 4, 1),
        (2, 1, 2),
        (2, 2, 1),
        (4, 1, 1),
    }
    for axis in ("sp", "tied", "distributed"):
        assert {getattr(one, axis) for one in found} == {True, False}


@pytest.mark.parametrize(
    ("one", "allowed"),
    [
        (Combination(dp=2, overlap="gather", bucket="several"), True),
        (Combination(dp=2, overlap="off"), True),
        (Combination(pp=2, vpp=2, p2p="overlapped"), True),
        # Activations and gradients swap places.
        (Combination(pp=2, vpp=2, p2p="batched"), False),
        (Combination(pp=4, vpp=2, p2p="batched", layers=8), True),
        # The schedule without interleaving does not overlap.
        (Combination(pp=2, p2p="overlapped"), False),
        # Without the distributed optimizer there is nothing to gather.
        (Combination(dp=2, distributed=False, overlap="gather", bucket="one"), False),
        (Combination(dp=2, distributed=False, overlap="reduce", bucket="one"), True),
        (Combination(dp=2, overlap="step", bucket="one"), False),
        (Combination(pp=2, vpp=2, dp=2, overlap="step", bucket="one", p2p="overlapped"), True),
    ],
    ids=lambda value: value.name if isinstance(value, Combination) else str(value),
)
def test_what_the_rules_allow(one: Combination, allowed: bool) -> None:
    assert grid.allowed(one) is allowed


def test_only_equal_orders_of_addition_must_have_the_same_bits() -> None:
    two = Combination(dp=2, overlap="reduce", bucket="one")
    assert two.order == replace(two, bucket="each", distributed=False).order
    four = replace(two, dp=4)
    assert four.order != replace(four, bucket="each").order
    assert four.order == replace(four, overlap="off", bucket=None).order
    assert two.order != replace(two, tied=True).order
    # The first and the last stage each have a gradient of a tied embedding.
    assert not Combination(pp=2, p2p="batched").reorders
    assert Combination(pp=2, p2p="batched", tied=True).reorders


PIPELINE = Combination(pp=2, p2p="batched")
FOUND = [
    PIPELINE,
    replace(PIPELINE, p2p="waiting"),
    Combination(dp=2),
    Combination(dp=2, overlap="reduce", bucket="each"),
]
WEIGHTS = np.linspace(1, 2, 6, dtype=np.float32).reshape(2, 3)


def observed(folder: Path, changed: dict[str, np.ndarray] | None = None) -> Observations:
    """Ranks that all hold the same weights, but for those of some variants."""
    blocks = {}
    for number, block in enumerate(grid.blocks_of(FOUND, 2)):
        variants = {}
        for variant in block.variants:
            weights = (changed or {}).get(variant.name, WEIGHTS)
            for rank in range(block.ranks):
                path = folder / weights_file(number, variant.name, rank)
                np.savez(path.open("wb"), **{"weight|layers.w|0,0|2,3": weights})
            result = VariantResult(
                name=variant.name, digest=weights.tobytes().hex(), losses=[1.0, 0.5]
            )
            variants[variant.name] = MeasuredVariant(variant.name, [result] * block.ranks)
        blocks[block.name] = ObservedBlock(number, None, variants, {}, "cpu")
    return Observations(blocks, dict.fromkeys(blocks, folder))


def outcomes(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.claim: verdict.outcome for verdict in verdicts}


def test_equal_weights_confirm_everything(tmp_path: Path) -> None:
    verdicts = grid.judge_of(FOUND, observed(tmp_path))
    assert set(outcomes(verdicts).values()) == {CONFIRMED}
    assert "4 combinations, 2 sets" in verdicts[1].evidence


def test_one_bit_is_found_and_named(tmp_path: Path) -> None:
    other = WEIGHTS.copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float32(9))
    odd = FOUND[1]
    verdicts = grid.judge_of(FOUND, observed(tmp_path, {odd.name: other}))
    assert outcomes(verdicts) == {
        grid.ALLOWED: CONFIRMED,
        grid.ALIKE: NOT_CONFIRMED,
        grid.EQUAL: NOT_CONFIRMED,
        grid.CLOSE: CONFIRMED,
    }
    assert odd.name in verdicts[1].evidence
    assert "layers.w" in verdicts[2].evidence


def test_rounding_passes_where_sums_are_reordered_and_nothing_more(tmp_path: Path) -> None:
    first = FOUND[2]
    both = [one.name for one in FOUND[2:]]
    for scale, outcome in ((1 + 1e-6, CONFIRMED), (1 + 1e-4, NOT_CONFIRMED)):
        changed = dict.fromkeys(both, (WEIGHTS * scale).astype(np.float32))
        found = outcomes(grid.judge_of(FOUND, observed(tmp_path, changed)))
        assert found[grid.CLOSE] == outcome
        assert found[grid.ALIKE] == found[grid.EQUAL] == CONFIRMED
    assert first.reorders


def test_weights_that_are_not_numbers_are_far_away(tmp_path: Path) -> None:
    changed = dict.fromkeys([one.name for one in FOUND[2:]], np.full_like(WEIGHTS, np.nan))
    assert outcomes(grid.judge_of(FOUND, observed(tmp_path, changed)))[grid.CLOSE] == NOT_CONFIRMED


def test_what_megatron_core_refuses_though_allowed_is_named(tmp_path: Path) -> None:
    found = observed(tmp_path)
    variants = found.blocks["grid-2"].variants
    name = FOUND[3].name
    variants[name] = MeasuredVariant(name, [VariantResult(name=name, error="IndexError: no chunk")])
    verdicts = grid.judge_of(FOUND, found)
    assert verdicts[0].outcome == NOT_CONFIRMED
    assert verdicts[0].evidence == f"{name}: IndexError: no chunk"


def test_steps_are_the_users() -> None:
    assert {block.steps for block in grid.blocks(Setting(steps=5))} == {5}
