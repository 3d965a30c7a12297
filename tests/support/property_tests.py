"""How many examples a property test draws: few in every run, many where they are asked for.

`HYPOTHESIS_PROFILE=thorough` draws the many, other ones in every run; a failure is printed with the
line that repeats it. Without it, a run draws the same examples as the run before.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

VARIABLE = "HYPOTHESIS_PROFILE"
USUAL = "usual"
THOROUGH = "thorough"


def load_profile() -> None:
    """Load the profile that the environment names. No deadline: machines are shared.

    Raises:
        InvalidArgument: there is no profile of that name.
    """
    seeded = "SEEDED" in os.environ
    settings.register_profile(USUAL, derandomize=not seeded, print_blob=seeded, deadline=None)
    settings.register_profile(
        THOROUGH, max_examples=1000, derandomize=False, print_blob=True, deadline=None
    )
    settings.load_profile(os.environ.get(VARIABLE) or USUAL)


def examples(usual: int, thorough: int, **more: Any) -> settings:
    """Settings of a test whose examples take longer than most: `usual` or `thorough` many."""
    chosen = thorough if os.environ.get(VARIABLE) == THOROUGH else usual
    return settings(max_examples=chosen, **more)
