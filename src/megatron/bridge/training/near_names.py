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


def _at_most(a: str, b: str) -> float:
    """An upper bound of two names' similarity: the share of characters that they have in common."""
    common = sum(min(a.count(char), b.count(char)) for char in set(a))
    return 2 * common / max(len(a) + len(b), 1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``' (did you mean 'x'?)'`` where a known name is near `name`, else nothing."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near else ""
