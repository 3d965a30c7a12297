"""What every test shares: `tests/support` importable, compiled Python, profiles, distribution."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from support import late  # noqa: E402
from support.property_tests import load_profile  # noqa: E402

BYTECODE = HERE.parent / ".pytest_cache" / "bytecode"

load_profile()

# What is shown must not depend on who runs the tests: colours, widths, the variables that rules
# look at, and those of a job in which the tests may run.
for name in (
    *("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING"),
    *("NVTE_FWD_LAYERNORM_SM_MARGIN", "NVTE_BWD_LAYERNORM_SM_MARGIN", "TORCH_NCCL_HIGH_PRIORITY"),
    *("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
):
    os.environ.pop(name, None)

if sys.dont_write_bytecode:
    # Many tests start processes that import torch, which takes twice as long where each of them
    # compiles it anew. So what is compiled is kept, though not beside the sources.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(BYTECODE)
    sys.dont_write_bytecode = False

# Importing Megatron-Core then loads no compiler, which takes a third of the time. What tests build
# compiles nothing on a CPU; tests/gpu takes it away again.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With `-n`, one worker runs a file's tests, whose fixtures start ranks once for all of them.

    In the files' order, which begins with those that take longest: the workers end together.
    """
    if getattr(config.option, "dist", None) == "no" and getattr(config.option, "numprocesses", 0):
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scenarios of the lab beyond dp, pp and tp: a few minutes more, on request."""
    if "WHOLE_LAB" in os.environ:
        return
    skip = pytest.mark.skip(reason="trains for minutes: WHOLE_LAB=1 runs it")
    for item in items:
        if item.get_closest_marker("whole_lab"):
            item.add_marker(skip)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note what collecting imported, which every run pays for, of one test too."""
    session.config.stash[late.IMPORTED] = late.imported()
