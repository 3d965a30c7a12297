"""Which case is to blame for the end of the ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from overlapkit.lab.events import FAILED, Event
from overlapkit.lab.hunt.batch import STARTS, _Places, kind_of, train
from overlapkit.lab.launch.failure import LabError
from overlapkit.lab.launch.start import Launch
from overlapkit.lab.protocol import Variant

NAMES = ["a", "b", "c"]


def places(*events: tuple[int, str], failed: tuple[tuple[int, float], ...] = ()) -> _Places:
    """Ranks that began blocks, and then raised at some time."""
    found = _Places(2)
    for rank, block in events:
        found.hear(Event(rank, 0.0, {"event": "build", "block": block, "variant": block}))
    for rank, time in failed:
        found.hear(Event(rank, time, {"event": FAILED, "error": f"ValueError: of {rank}"}))
    return found


def test_the_rank_that_raised_first_was_in_the_case_at_fault() -> None:
    ahead = places((0, "a"), (1, "a"), (1, "b"), failed=((0, 2.0), (1, 1.0)))
    assert ahead.culprit(NAMES) == ("b", "ValueError: of 1")
    behind = places((0, "a"), (1, "a"), (1, "b"), failed=((0, 1.0), (1, 2.0)))
    assert behind.culprit(NAMES) == ("a", "ValueError: of 0")


def test_without_an_exception_the_first_case_that_a_rank_did_not_leave_is_at_fault() -> None:
    assert places((0, "a"), (1, "a"), (1, "b"), (1, "c")).culprit(NAMES) == ("a", "")
    assert places((1, "b")).culprit(NAMES) == ("a", "")


def test_before_any_case_nothing_is_at_fault() -> None:
    assert places().culprit(NAMES) == (None, "")
    assert places(failed=((0, 1.0),)).culprit(NAMES)[0] is None


def test_the_same_error_with_other_values_is_the_same() -> None:
    one = kind_of("ValueError: 3 layers do not divide by 2\nmore")
    assert one == kind_of("ValueError: 5 layers do not divide by 4")
    assert one != kind_of("ValueError: 3 heads do not divide by 2")


@pytest.mark.parametrize("failing", [1, STARTS])
def test_ranks_that_do_not_start_are_started_again_once(
    failing: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts: list[Launch] = []

    def run_ranks(launch: Launch, hear: Callable[[Event], None]) -> None:
        starts.append(launch)
        if len(starts) > failing:
            # A rank begins the case and raises: the case is at fault, not the start.
            hear(Event(0, 1.0, {"event": "build", "block": "a", "variant": "a"}))
            hear(Event(0, 2.0, {"event": FAILED, "error": "ValueError: no"}))
        raise LabError("no rank has sent an event", None)

    monkeypatch.setattr("overlapkit.lab.hunt.batch.run_ranks", run_ranks)
    fates: dict[str, str | None] = {}
    variants = [Variant(name="a", settings={})]

    def start() -> None:
        train(
            variants,
            2,
            lambda one, observed: fates.update({one.variant: one.trouble}),
            scratch=tmp_path,
        )

    if failing == STARTS:
        with pytest.raises(LabError):
            start()
        assert not fates
    else:
        start()
        assert fates == {"a": "crash"}
    assert len(starts) == STARTS
