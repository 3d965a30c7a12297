"""Claims about time: confirmed and refuted only where the measurements can tell."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from overlapkit.lab.measurements import MeasuredVariant, ProfiledStep, disturbed
from overlapkit.lab.protocol import VariantResult
from overlapkit.lab.scenario import CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE
from overlapkit.lab.timing import exposes_less, shorter, timed

RANKS = 2


def measured(
    name: str, turns: list[list[float]], others: list[float | None] | None = None
) -> MeasuredVariant:
    """A variant on two ranks and two cores."""
    of_turns: list[float | None] = list(others or [0.0] * len(turns))
    result = VariantResult(name=name, turns=turns, others=of_turns, cores=2)
    return MeasuredVariant(name, [result] * RANKS)


def profiled(name: str, exposed: float, spread: float) -> MeasuredVariant:
    """A variant whose step of 1 s was profiled with so much exposed communication."""
    profile = ProfiledStep(
        step=1.0,
        compute=1.0 - exposed,
        comm=exposed,
        exposed=exposed,
        other=0.0,
        by_dimension={"DP": (exposed, exposed)},
        step_spread=spread,
    )
    return replace(measured(name, [[1.0, 1.0, 1.0]] * 3), profile=profile)


def noisy(rng: random.Random, mean: float, noise: float) -> list[list[float]]:
    """Three turns of three steps, as the default scenarios have."""
    return [[rng.gauss(mean, noise) for _ in range(3)] for _ in range(3)]


class TestDisturbance:
    def test_another_program_on_cores_that_the_ranks_need(self) -> None:
        assert disturbed(0.7, cores=2, ranks=2)

    def test_another_program_on_cores_that_are_free(self) -> None:
        assert not disturbed(8.0, cores=16, ranks=2)

    def test_a_quiet_machine_and_an_unknown_one(self) -> None:
        assert not disturbed(0.03, cores=2, ranks=2)
        assert not disturbed(None, cores=2, ranks=2)

    def test_a_disturbed_turn_is_left_out_and_counted(self) -> None:
        one = measured("a", [[1.0], [5.0], [1.2]], [0.0, 0.9, 0.0])
        assert one.judged_steps == [1.0, 1.2]
        assert one.steps == [1.0, 5.0, 1.2]
        assert one.disturbed_turns == 1

    def test_where_every_turn_was_disturbed_the_figures_are_of_all(self) -> None:
        one = measured("a", [[1.0], [5.0]], [0.9, 0.9])
        assert one.judged_steps == [1.0, 5.0]
        assert one.disturbed_turns == 2

    def test_one_disturbed_turn_of_three_does_not_prevent_a_verdict(self) -> None:
        off = measured("off", [[1.0, 1.0], [3.0, 3.0], [1.0, 1.0]], [0.0, 0.9, 0.0])
        on = measured("on", [[0.7, 0.7]] * 3)
        assert shorter(off, on, "claim").outcome == CONFIRMED

    def test_two_disturbed_turns_of_three_do_whatever_the_figures_say(self) -> None:
        off = measured("off", [[1.0, 1.0]] * 3, [0.0, 0.9, 0.9])
        for step in (0.5, 2.0):
            verdict = shorter(off, measured("on", [[step, step]] * 3), "claim")
            assert verdict.outcome == NOT_TESTABLE
            assert "disturbed 2 of 3 turns of off" in verdict.evidence

    def test_a_disturbed_profile_says_nothing(self) -> None:
        first, last = profiled("first", 0.4, 0.01), profiled("last", 0.1, 0.01)
        result = last.ranks[0]
        result.profile_others = 0.9
        assert exposes_less([first, last], "claim").outcome == NOT_TESTABLE

    def test_steps_that_vary_without_a_known_cause_say_nothing(self) -> None:
        off = measured("off", [[1.0, 2.0, 3.0]] * 3, [None] * 3)
        on = measured("on", [[9.0, 9.0, 9.0]] * 3, [None] * 3)
        assert shorter(off, on, "claim").outcome == NOT_TESTABLE


class TestShorter:
    @pytest.mark.parametrize(("on", "outcome"), [(0.7, CONFIRMED), (1.0, NOT_CONFIRMED)])
    def test_steady_steps_decide(self, on: float, outcome: str) -> None:
        variants = [measured("off", [[1.0] * 3] * 3), measured("on", [[on] * 3] * 3)]
        assert shorter(*variants, "claim").outcome == outcome

    def test_a_difference_within_the_variation_is_neither(self) -> None:
        off = measured("off", [[0.9, 1.0, 1.1]] * 3)
        on = measured("on", [[0.85, 0.95, 1.05]] * 3)
        assert shorter(off, on, "claim").outcome == NOT_TESTABLE

    @pytest.mark.parametrize("noise", [0.05, 0.1, 0.2, 0.5])
    def test_a_real_gain_is_hardly_ever_refuted(self, noise: float) -> None:
        rng = random.Random(1)
        outcomes = Counter(
            shorter(
                measured("off", noisy(rng, 1.0, noise)),
                measured("on", noisy(rng, 0.75, noise)),
                "claim",
            ).outcome
            for _ in range(2000)
        )
        assert outcomes[NOT_CONFIRMED] <= 0.02 * 2000

    @pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
    def test_a_longer_step_is_hardly_ever_called_shorter(self, noise: float) -> None:
        rng = random.Random(2)
        outcomes = Counter(
            shorter(
                measured("off", noisy(rng, 1.0, noise)),
                measured("on", noisy(rng, 1.15, noise)),
                "claim",
            ).outcome
            for _ in range(2000)
        )
        assert outcomes[CONFIRMED] <= 0.02 * 2000

    def test_a_quiet_machine_confirms_a_real_gain(self) -> None:
        rng = random.Random(3)
        outcomes = Counter(
            shorter(
                measured("off", noisy(rng, 1.0, 0.02)),
                measured("on", noisy(rng, 0.75, 0.02)),
                "claim",
            ).outcome
            for _ in range(500)
        )
        assert outcomes[CONFIRMED] >= 0.99 * 500


class TestExposesLess:
    def test_the_first_and_the_last_are_compared(self) -> None:
        variants = [profiled("a", 0.39, 0.01), profiled("b", 0.223, 0.01)]
        verdict = exposes_less([*variants, profiled("c", 0.25, 0.01)], "claim", "DP")
        assert verdict.outcome == CONFIRMED
        assert "390 -> 223 -> 250 ms" in verdict.evidence

    def test_a_rise_within_the_variation_refutes_nothing(self) -> None:
        verdict = exposes_less([profiled("a", 0.293, 0.06), profiled("b", 0.316, 0.06)], "claim")
        assert verdict.outcome == NOT_TESTABLE

    def test_a_rise_beyond_it_does(self) -> None:
        verdict = exposes_less([profiled("a", 0.293, 0.01), profiled("b", 0.4, 0.01)], "claim")
        assert verdict.outcome == NOT_CONFIRMED

    def test_hiding_next_to_nothing_on_a_quiet_machine_refutes(self) -> None:
        verdict = exposes_less([profiled("a", 0.3, 0.001), profiled("b", 0.29, 0.02)], "claim")
        assert verdict.outcome == NOT_CONFIRMED


def test_what_is_neither_shown_nor_refuted_is_not_testable() -> None:
    one = measured("a", [[1.0] * 3] * 3)
    verdict = timed("claim", "figures", [one], holds=False, refuted=False)
    assert verdict.outcome == NOT_TESTABLE
    assert verdict.evidence.endswith("figures")


def test_ranks_that_share_cores_say_nothing_about_time() -> None:
    pairs = [measured(name, [[step] * 3] * 3) for name, step in (("off", 1.0), ("on", 0.5))]
    off, on = (replace(one, ranks=one.ranks * 2) for one in pairs)
    verdict = shorter(off, on, "claim")
    assert verdict.outcome == NOT_TESTABLE
    assert "4 ranks share 2 cores" in verdict.evidence


def test_ranks_of_several_machines_are_not_taken_to_share_cores() -> None:
    pairs = [
        measured(name, [[step] * 3] * 3, [None] * 3) for name, step in (("a", 1.0), ("b", 0.5))
    ]
    off, on = (replace(one, ranks=one.ranks * 8) for one in pairs)
    assert shorter(off, on, "claim").outcome == CONFIRMED
