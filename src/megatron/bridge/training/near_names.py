"""Which known name an unknown one was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(
    name: str, known: Iterable[str], *, cutoff: float = 0.6, shortest_prefix: int = 4
) -> str | None:
    """The known name that `name` was probably meant to be; None where none is near.

    Args:
        name: the unknown name.
        known: the names that exist.
        cutoff: similarity from 0 to 1 below which a name is not near, as of `difflib`.
        shortest_prefix: characters from which on `name` may be the beginning of a known name.
            The shortest name that it begins then wins over the most similar one.
    """
    names = sorted(known)
    begun = [each for each in names if len(name) >= shortest_prefix and each.startswith(name)]
    if begun:
        return min(begun, key=len)
    found = near_names(name, names, most=1, cutoff=cutoff)
    return found[0] if found else None


def near_names(name: str, known: Iterable[str], *, most: int, cutoff: float = 0.6) -> list[str]:
    """The known names that are most similar to `name`, the nearest first; at most `most`."""
    similar = [each for each in known if _at_most(name, each) >= cutoff]
    if not similar:
        return []
    # Imported here: only a mistake needs it, and every start would pay for it.
    from difflib import get_close_matches

    return get_close_matches(name, similar, n=most, cutoff=cutoff)


def typo_of(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is a typing error of; None where it may be another name.

    A typing error is one letter that is missing, added or another, or two that are swapped; in a
    name of 12 letters or more also two such errors. Another number is another name: fp4 is no
    typing error of fp8.
    """
    most = 1 if len(name) < 12 else 2
    if len(name) < 5:
        return None
    letters = _without_digits(name)
    others = [each for each in known if _without_digits(each) != letters or each == name]
    near = [(edits(name, each, most), each) for each in others]
    best = min(((count, each) for count, each in near if count is not None), default=None)
    return best[1] if best is not None else None


def _without_digits(name: str) -> str:
    return "".join(char for char in name if not char.isdigit())


def edits(a: str, b: str, most: int) -> int | None:
    """Letters to add, remove, replace or swap with their neighbour to get from `a` to `b`.

    Returns:
        The number, from 0 to `most`; None where it takes more.
    """
    if abs(len(a) - len(b)) > most:
        return None
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                least = min(least, older[j - 2] + 1)
            row.append(least)
        if min(row) > most:
            return None
    return row[-1] if row[-1] <= most else None


def _at_most(a: str, b: str) -> float:
    """An upper bound of two names' similarity: the share of characters that they have in common."""
    common = sum(min(a.count(char), b.count(char)) for char in set(a))
    return 2 * common / max(len(a) + len(b), 1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``' (did you mean 'x'?)'`` where a known name is near `name`, else nothing."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near else ""
