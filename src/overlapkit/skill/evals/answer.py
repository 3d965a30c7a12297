"""What a right answer is: a number within a tolerance, a text, or a list in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from overlapkit.output.numbers import plain


@dataclass(frozen=True)
class Number:
    """A number.

    Attributes:
        value: what the tool answers.
        within: the relative error that is still right.
    """

    value: float
    within: float = 0.0


@dataclass(frozen=True)
class Text:
    """A word, such as the id of a rule or the value of a variable."""

    value: str


@dataclass(frozen=True)
class Names:
    """A list of words, each once, in any order."""

    value: tuple[str, ...]


Expected: TypeAlias = Number | Text | Names


def names(values: Sequence[str]) -> Names:
    """The different ones of some words."""
    return Names(tuple(sorted(set(values))))


def form(expected: Expected) -> str:
    """How an answer is written, for who answers."""
    if isinstance(expected, Number):
        return "a number"
    return "a text" if isinstance(expected, Text) else "a list of texts"


def document(expected: Expected) -> dict[str, Any]:
    """What evals.json says of it."""
    if isinstance(expected, Number):
        return {"number": plain(expected.value), "within": expected.within}
    if isinstance(expected, Text):
        return {"text": expected.value}
    return {"list": list(expected.value)}


def read(written: dict[str, Any]) -> Expected:
    """The reverse of `document`.

    Raises:
        KeyError: it is of none of the kinds.
        TypeError: a value has the wrong type.
        ValueError: a number is none.
    """
    if "number" in written:
        return Number(float(written["number"]), float(written.get("within", 0)))
    if "list" in written:
        return names([str(word) for word in written["list"]])
    return Text(str(written["text"]))


def is_right(expected: Expected, given: Any) -> bool:
    """Whether an answer is right. Of texts, case and surrounding spaces do not count."""
    if isinstance(expected, Number):
        number = _number(given)
        return number is not None and abs(number - expected.value) <= abs(
            expected.value * expected.within
        )
    if isinstance(expected, Text):
        return not isinstance(given, (list, dict)) and _word(given) == _word(expected.value)
    if not isinstance(given, list):
        return False
    return {_word(each) for each in given} == {_word(each) for each in expected.value}


def _number(given: Any) -> float | None:
    if isinstance(given, bool) or given is None:
        return None
    try:
        return float(str(given).replace(",", "").replace("_", ""))
    except ValueError:
        return None


def _word(given: Any) -> str:
    return str(given).strip().casefold()
