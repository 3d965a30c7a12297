"""The command `overlapkit skill render`."""

from __future__ import annotations

import os
import sys

from overlapkit.errors import EXIT_FINDING
from overlapkit.skill.render import drift, find_root, write


def render(*, check: bool, root: str | None) -> int:
    """Render the skill and the docs, or with `check` show how they differ from the source.

    Raises:
        InputError: see `overlapkit.skill.render`.
    """
    folder = find_root(root if root is not None else os.curdir)
    if check:
        lines = list(drift(folder))
        sys.stdout.writelines(lines)
        if lines:
            print(
                "The skill differs from the source: run `overlapkit skill render`.", file=sys.stderr
            )
        return EXIT_FINDING if lines else 0
    for path in write(folder):
        print(path.as_posix())
    return 0


def render_against(checkout: str, out: str) -> int:
    """Write the skill with the anchors of a checkout, and name the pages that have them.

    Raises:
        InputError: see `overlapkit.skill.against`.
    """
    from overlapkit.skill.against import write_against

    for path in write_against(checkout, out):
        print(path)
    return 0
