"""Heavy modules for tests: looked for when tests are collected, imported when one uses them."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import Any

import pytest

HEAVY = ("torch", "megatron.core", "nemo_run")
IMPORTED: pytest.StashKey[list[str]] = pytest.StashKey()
"""What of HEAVY was imported when all tests were collected."""


class Late:
    """A module by its name, imported with the first of its attributes that is used.

    Importing torch, Megatron-Core and nemo_run takes seconds, also of whoever runs another test.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            # pytest looks for a few such on everything that a file of tests holds.
            raise AttributeError(name)
        return getattr(importlib.import_module(self._module), name)


def imported() -> list[str]:
    """What of HEAVY this process has imported."""
    return [module for module in HEAVY if module in sys.modules]


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips where a module is not installed. One that is installed but broken fails the test."""
    missing = [module for module in modules if not _installed(module)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
