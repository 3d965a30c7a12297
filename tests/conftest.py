"""Makes `tests/support` importable as `support`, and property tests the same in every run."""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A run that fails must fail again: with SEEDED set other examples are looked for. No deadline,
# since machines are shared and no test asserts a time.
settings.register_profile("repeatable", derandomize="SEEDED" not in os.environ, deadline=None)
settings.load_profile("repeatable")
