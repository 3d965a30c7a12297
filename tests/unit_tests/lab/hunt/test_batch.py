"""Which case is to blame for the end of the ranks."""

from __future__ import annotations

from overlapkit.lab.events import FAILED, Event
from overlapkit.lab.hunt.batch import _Places, kind_of

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
