"""Importing the rules loads neither torch nor Megatron-Core: explain answers in a blink."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "megatron.bridge.training.comm_overlap",
        "megatron.bridge.training.runtime_update",
        "megatron.bridge.training.mixed_precision",
        "megatron.bridge.models",
        "megatron.bridge.recipes.launch_env",
        "overlapkit.explain.command",
        "overlapkit.skill.render",
    ],
)
def test_torch_free(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print(sorted(m for m in sys.modules if m in ('torch', 'megatron.core', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
