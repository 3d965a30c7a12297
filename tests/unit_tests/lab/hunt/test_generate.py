"""The generator: what it draws the rules allow, it can be repeated, and it tries what is new."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from overlapkit.lab.hunt.case import CHOICES, Case, layers, settings, unpartitioned
from overlapkit.lab.hunt.generate import (
    RANKS,
    Generator,
    allowed,
    grid_pairs,
    normal,
    pairs,
    possible,
)
from overlapkit.lab.scenarios import grid


def drawn(seed: int, number: int = 60) -> list[Case]:
    generator = Generator(seed, Counter())
    found = [generator.draw(RANKS[place % len(RANKS)]) for place in range(number)]
    return [one for one in found if one is not None]


def test_every_case_is_allowed_fits_its_ranks_and_is_drawn_once() -> None:
    cases = drawn(3)
    assert len(cases) > 40 and len(set(cases)) == len(cases)
    for case in cases:
        assert allowed(case) and normal(case) == case and case.ranks in RANKS


def test_the_same_seed_draws_the_same_cases_and_another_one_others() -> None:
    assert drawn(5) == drawn(5)
    assert not set(drawn(5)) & set(drawn(6))


def test_every_value_of_every_feature_is_drawn() -> None:
    cases = drawn(1, 900)
    for name, values in CHOICES.items():
        missing = set(values) - {getattr(case, name) for case in cases}
        # These ranks cannot train it, or a rule refuses it without Transformer Engine; one step
        # shows less than several.
        untried = {
            "residual": {True},
            "steps": {1},
            "instances": {2},
            "recompute": {"layernorm", "moe_act"},
        }
        assert missing <= untried.get(name, set()), name


def test_pairs_that_were_tried_are_drawn_less_often() -> None:
    cases = drawn(1)
    tried = Counter(pair for case in cases for pair in pairs(case))
    generator = Generator(1, Counter(tried))
    again = [one for place in range(60) if (one := generator.draw(RANKS[place % len(RANKS)]))]
    new = [pair for case in again for pair in pairs(case) if not tried[pair]]
    same = [pair for case in cases for pair in pairs(case) if not tried[pair]]
    assert again != cases and len(new) > len(same)


def test_what_the_grid_tries_counts_as_tried() -> None:
    assert grid_pairs()[("pp", 2), ("p2p", "overlapped")] > 0
    assert grid_pairs()[("pp", 2), ("experts", "alltoall")] == 0


def test_a_hunt_around_a_case_changes_few_of_its_features() -> None:
    centre = Case(tp=2, sp=True, pp=2, microbatches=4, rms=True, gated=True)
    generator = Generator(2, Counter(), around=centre)
    found = [one for _ in range(40) if (one := generator.draw(4)) is not None]
    assert found
    for case in found:
        changed = [n for n in CHOICES if getattr(case, n) != getattr(centre, n)]
        assert len(changed) <= 6 and case.ranks == 4


def test_features_without_an_effect_are_dropped() -> None:
    case = Case(pp=1, vpp=4, p2p="batched", topk=2, etp=2, bucket="each", steps=2)
    assert normal(case) == Case(steps=2)


@pytest.mark.parametrize(
    ("case", "number"),
    [
        (Case(pp=2, vpp=2, depth=2), 8),
        (Case(pp=2, vpp=2, stages="first"), 6),
        (Case(pp=4, stages="both", depth=2), 6),
        (Case(pp=2, stages="layout"), 2),
    ],
)
def test_the_number_of_layers_is_that_of_the_stages(case: Case, number: int) -> None:
    assert layers(case) == number == settings(case)["model"]["num_layers"]
    assert layers(unpartitioned(case)) == number


def test_the_unpartitioned_model_has_the_same_batch_and_no_partition() -> None:
    case = Case(tp=2, pp=2, dp=2, microbatches=3, micro_batch=2, distributed=True, overlap="align")
    whole = unpartitioned(case)
    assert whole.ranks == 1 and not whole.distributed and whole.overlap == "off"
    assert settings(whole)["train"] == settings(case)["train"]


def test_what_no_rule_allows_is_not_allowed() -> None:
    hazard = Case(pp=2, vpp=2, microbatches=4, p2p="batched", steps=2)
    assert possible(hazard) and not allowed(hazard)
    assert allowed(msgspec.structs.replace(hazard, p2p="overlapped"))
    assert not grid.granted("hazard", settings(hazard), hazard.ranks)
