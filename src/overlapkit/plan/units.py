"""Units of figures: which may be added or compared, and what a product is measured in.

A unit is a product of words, such as ``B/s``, ``J/FLOP`` or ``tokens*B``. Two kinds of words behave
differently. A measure (seconds, bytes, FLOPs, joules) is strict: seconds and bytes are never added.
A count (tokens, ranks, stages, …) says what is counted: tokens and ranks are not added either, but
both may be added to a plain number, and a name may drop or replace a count: tokens times bytes per
token is called bytes.
"""

from __future__ import annotations

from functools import cache

COUNTS = frozenset({"tokens", "sequences", "ranks", "stages", "chunks"})
"""Words that say what is counted; every other word is a measure."""

_DERIVED = {"W": (("J", 1), ("s", -1))}
"""Units that stand for a product of others."""

Powers = tuple[tuple[str, int], ...]
"""Words with their exponents, sorted; no exponent is 0."""


class UnitError(TypeError):
    """Incompatible units were combined, or a name states another unit than was computed."""


@cache
def compatible(one: str, other: str) -> bool:
    """Whether figures of these units can be added or compared."""
    if one == other:
        return True
    a, b = _powers(one), _powers(other)
    counted = [power for power in (_counts(a), _counts(b)) if power]
    return measures(one) == measures(other) and (len(counted) < 2 or counted[0] == counted[1])


@cache
def can_be_called(computed: str, stated: str) -> bool:
    """Whether what was computed in one unit may be given a name with another: counts may differ."""
    return measures(computed) == measures(stated)


@cache
def product(one: str, other: str) -> str:
    """The unit of a product."""
    return _text(_combined(_powers(one), _powers(other), 1))


@cache
def quotient(one: str, other: str) -> str:
    """The unit of a quotient."""
    return _text(_combined(_powers(one), _powers(other), -1))


@cache
def measures(unit: str) -> Powers:
    """The measures of a unit, without its counts."""
    return tuple(power for power in _powers(unit) if power[0] not in COUNTS)


def _counts(powers: Powers) -> Powers:
    return tuple(power for power in powers if power[0] in COUNTS)


@cache
def _powers(unit: str) -> Powers:
    found: Powers = ()
    above, *below = unit.split("/")
    for sign, words in (
        (1, above.split("*")),
        (-1, [w for part in below for w in part.split("*")]),
    ):
        for text in words:
            word, _, exponent = text.partition("^")
            if word in ("", "1"):
                continue
            one = _DERIVED.get(word, ((word, 1),))
            times = sign * int(exponent or 1)
            found = _combined(found, tuple((name, power * times) for name, power in one), 1)
    return found


def _combined(one: Powers, other: Powers, sign: int) -> Powers:
    powers = dict(one)
    for word, exponent in other:
        powers[word] = powers.get(word, 0) + sign * exponent
    return tuple(sorted((word, exponent) for word, exponent in powers.items() if exponent))


def _text(powers: Powers) -> str:
    above = "*".join(_word(word, power) for word, power in powers if power > 0)
    below = "".join(f"/{_word(word, -power)}" for word, power in powers if power < 0)
    return (above or ("1" if below else "")) + below


def _word(word: str, power: int) -> str:
    return word if power == 1 else f"{word}^{power}"
