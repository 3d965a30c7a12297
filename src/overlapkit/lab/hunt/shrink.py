"""The smallest case that still shows what a case showed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from overlapkit.lab.hunt.case import CHOICES, Case
from overlapkit.lab.hunt.generate import normal

Oracle = Callable[[Sequence[Case]], Sequence[bool]]
"""Says of each case whether it shows it."""

_ROUNDS = 30


def size(case: Case) -> tuple[int, int, int, tuple[int, ...]]:
    """Smaller is simpler: ranks first, then the number of features, then their values."""
    places = tuple(_place(case, name) for name in CHOICES)
    return case.ranks, sum(map(bool, places)), sum(places), places


def _place(case: Case, name: str) -> int:
    """Where a feature's value is among those that can be drawn; after them if it is none."""
    values = CHOICES[name]
    value = getattr(case, name)
    return values.index(value) if value in values else len(values)


def simpler(case: Case) -> Iterator[Case]:
    """Cases that are simpler in one feature, each once."""
    found: dict[Case, None] = {}
    for name, values in CHOICES.items():
        for other in values[: _place(case, name)]:
            found[normal(msgspec.structs.replace(case, **{name: other}))] = None
    yield from (one for one in found if size(one) < size(case))


def shrunk(
    case: Case, shows: Oracle, allowed: Callable[[Case], bool], *, costly: bool = False
) -> Case:
    """The smallest case that was found; a change of any one feature to a simpler one hides it.

    Args:
        case: shows it.
        shows: trains cases.
        allowed: whether a case can be trained and the rules allow it.
        costly: whether a case that shows it takes much longer than one that does not, as a crash
            does. Few of those that show it are tried then.
    """
    if costly:
        case = _halved(case, shows, allowed)
    tried: set[Case] = {case}
    for _ in range(_ROUNDS):
        candidates = [one for one in _spread(case, allowed) if one not in tried]
        tried.update(candidates)
        verdicts = shows(candidates) if candidates else ()
        good = [one for one, shown in zip(candidates, verdicts, strict=True) if shown]
        if not good:
            return case
        together = _together(case, good)
        if together not in tried and together not in good and allowed(together):
            tried.add(together)
            if shows([together])[0]:
                case = together
                continue
        case = min(good, key=size)
        # What one feature hid before, another may show now.
        tried = {case}
    return case


def _spread(case: Case, allowed: Callable[[Case], bool]) -> Iterator[Case]:
    """Of the simpler cases that are allowed, at most three for each feature.

    They are the simplest, one in the middle, and the next simpler one.
    """
    left = [one for one in simpler(case) if allowed(one)]
    for name in CHOICES:
        own = [one for one in left if getattr(one, name) != getattr(case, name)]
        own = [
            one
            for one in own
            if normal(msgspec.structs.replace(case, **{name: getattr(one, name)})) == one
        ]
        if own:
            yield from dict.fromkeys((own[0], own[len(own) // 2], own[-1]))


def _halved(case: Case, shows: Oracle, allowed: Callable[[Case], bool]) -> Case:
    """The case without as many features as can be left out in groups, the largest groups first.

    As delta debugging does (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing
    input", 2002): the number of cases that show it grows with the logarithm of what is left out.
    """
    tried: set[Case] = {case}
    groups = 1
    while True:
        names = [name for name, values in CHOICES.items() if getattr(case, name) != values[0]]
        groups = min(groups, len(names))
        for place in range(groups):
            left_out = names[place::groups]
            simplest = {name: CHOICES[name][0] for name in left_out}
            other = normal(msgspec.structs.replace(case, **simplest))
            if other in tried or size(other) >= size(case) or not allowed(other):
                continue
            tried.add(other)
            if shows([other])[0]:
                case = other
                break
        else:
            if groups >= len(names):
                return case
            groups *= 2


def _together(case: Case, good: Sequence[Case]) -> Case:
    """The case with every simplification at once, the simplest of each feature."""
    changed = {}
    for name, values in CHOICES.items():
        others = {getattr(one, name) for one in good} - {getattr(case, name)}
        known = [value for value in values if value in others]
        if known:
            changed[name] = known[0]
    return normal(msgspec.structs.replace(case, **changed))
