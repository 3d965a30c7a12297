"""Exit statuses, the one error that a command turns into 2, and what helps to word it."""

from __future__ import annotations

from collections.abc import Iterable

EXIT_FINDING = 1
"""Something asked for is not in effect, a page drifted, a step regressed."""
EXIT_BAD_INPUT = 2

_LONGEST = 1200


class InputError(Exception):
    """Bad input or a missing dependency.

    The message is one line that says what is wrong, where (file:line or key) and how to mend it.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        # What comes from a file may hold control characters, which a terminal would obey.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


def nearest(name: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The candidate most like `name`, or None when none is near; one that starts with it wins."""
    from difflib import get_close_matches

    begun = [c for c in candidates if len(name) > 3 and c.startswith(name)]
    if begun:
        return min(begun, key=len)
    found = get_close_matches(name, sorted(candidates), n=1, cutoff=cutoff)
    return found[0] if found else None
