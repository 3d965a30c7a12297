"""The smallest case that shows something, with an oracle that only looks at features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.generate import possible
from overlapkit.lab.hunt.shrink import shrunk, simpler, size

LARGE = Case(
    tp=2,
    sp=True,
    pp=2,
    vpp=4,
    dp=2,
    depth=2,
    microbatches=6,
    micro_batch=2,
    p2p="overlapped",
    distributed=True,
    overlap="align",
    bucket="each",
    clip=True,
    rope=True,
    gated=True,
    precision="bf16",
    actions="both",
    steps=3,
)


def of(one: Callable[[Case], bool]) -> Callable[[Sequence[Case]], list[bool]]:
    return lambda cases: [one(case) for case in cases]


SHOWING: list[tuple[Callable[[Case], bool], Case]] = [
    (lambda case: True, Case()),
    (lambda case: case.sp, Case(tp=2, sp=True)),
    (lambda case: case.pp > 1 and case.vpp > 1, Case(pp=2, vpp=2)),
    (lambda case: case.microbatches > 3 and case.clip, Case(microbatches=4, clip=True)),
    # Only two features together could be simpler.
    (lambda case: case.distributed != (case.tp == 1), Case(tp=2, distributed=True)),
    (lambda case: case.steps > 1 and case.actions in ("both", "checkpoint"), Case(
        steps=2, actions="checkpoint"
    )),
]  # fmt: skip


@pytest.mark.parametrize("costly", [False, True])
@pytest.mark.parametrize(("shows", "smallest"), SHOWING)
def test_the_smallest_case_is_found(
    shows: Callable[[Case], bool], smallest: Case, costly: bool
) -> None:
    found = shrunk(LARGE, of(shows), possible, costly=costly)
    assert shows(found)
    # Leaving out many features at once can find a smaller case than one at a time.
    assert size(found) <= size(smallest) if costly else found == smallest
    assert not any(shows(one) for one in simpler(found) if possible(one))


def test_the_same_case_shrinks_to_the_same_case() -> None:
    shows = of(lambda case: case.pp > 1 and (case.clip or case.rope))
    assert shrunk(LARGE, shows, possible) == shrunk(LARGE, shows, possible)


def test_only_what_is_allowed_is_tried() -> None:
    tried: list[Case] = []

    def shows(cases: Sequence[Case]) -> list[bool]:
        tried.extend(cases)
        return [True for _ in cases]

    found = shrunk(LARGE, shows, lambda case: case.clip)
    assert found == Case(clip=True) and all(case.clip for case in tried)


def test_what_nothing_simpler_shows_stays() -> None:
    assert shrunk(LARGE, of(lambda case: False), possible) == LARGE


def test_each_simpler_case_is_simpler() -> None:
    assert all(size(one) < size(LARGE) for one in simpler(LARGE))


def test_where_a_case_that_shows_it_is_costly_few_of_them_are_tried() -> None:
    def shown(costly: bool) -> int:
        tried: list[bool] = []

        def shows(cases: Sequence[Case]) -> list[bool]:
            found = [case.clip and case.rope for case in cases]
            tried.extend(found)
            return found

        found = shrunk(LARGE, shows, possible, costly=costly)
        assert found == Case(clip=True, rope=True)
        return sum(tried)

    assert shown(True) * 2 < shown(False)


def test_a_size_is_reduced_past_values_that_are_not_allowed() -> None:
    even = of(lambda case: case.pp == 2 and case.microbatches > 1)
    found = shrunk(
        Case(pp=2, microbatches=6), even, lambda case: case.pp == 1 or case.microbatches % 2 == 0
    )
    assert found == Case(pp=2, microbatches=2)
