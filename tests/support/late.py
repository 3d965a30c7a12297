"""Heavy modules for tests: looked for when tests are collected, imported when one uses them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import pytest


class Late:
    """A module by its name, imported with the first of its attributes that is used.

    Importing torch, Megatron-Core and nemo_run takes seconds, also of whoever runs another test.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips where a module is not installed. One that is installed but broken fails the test."""
    missing = [module for module in modules if not _installed(module)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
