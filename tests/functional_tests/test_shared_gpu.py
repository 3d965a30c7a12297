"""Collectives through memory: two ranks, gloo, and streams that do nothing where there is no GPU.

What is checked here is what does not depend on a GPU: which collectives are made, in which order,
that they are not captured by those that the trainer captures at the same time, and their results.
`tests/gpu` checks the rest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.late import needs

pytestmark = [pytest.mark.functional, needs("torch", "megatron.core")]


def test_collectives_through_memory_give_what_gloo_gives(tmp_path: Path) -> None:
    script = Path(__file__).with_name("shared_gpu_ranks.py")
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
