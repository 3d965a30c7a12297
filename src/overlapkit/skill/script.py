"""Facts for `scripts/overlapkit`, which runs the source that travels with the skill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from overlapkit.errors import InputError

_MODULES = {"python-dotenv": "dotenv", "pyyaml": "yaml"}
"""Packages that are imported by another name than their own."""


def project(root: Path) -> dict[str, Any]:
    """The table `project` of the repository's pyproject.toml.

    Raises:
        InputError: it cannot be read.
    """
    path = root / "pyproject.toml"
    try:
        content = msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return content["project"]  # type: ignore[no-any-return]


def modules(dependencies: list[str]) -> dict[str, str]:
    """Each package that a list of requirements names, with the module that it is imported as."""
    from packaging.requirements import Requirement

    names = [Requirement(each).name for each in dependencies]
    return {name: _MODULES.get(name, name) for name in names}


def is_executable(path: Path) -> bool:
    """Whether a rendered file is a program: one in the skill's folder of scripts."""
    return path.parent.name == "scripts"
