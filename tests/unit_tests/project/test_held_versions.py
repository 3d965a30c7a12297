"""The held versions fit the bounds of pyproject.toml and name packages and versions alone."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
HELD = ROOT / "held-versions" / "pyproject.toml"
NAME = "overlapkit"

pytestmark = pytest.mark.skipif(
    not HELD.is_file(), reason="held-versions/ is deleted: the newest versions are in use"
)


def _toml(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.toml.decode(path.read_bytes())
    return document


PYPROJECT = _toml(ROOT / "pyproject.toml")
PYTHONS = [
    found[1]
    for line in PYPROJECT["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
]


def _linux(python: str) -> dict[str, str]:
    """The markers' variables on Linux, x86_64, with CPython of this version."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "extra": "",
    }


def _holds(requirement: Requirement, python: str, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate(
        _linux(python) | {"extra": extra}
    )


def _held(python: str) -> dict[str, Version]:
    """Names of packages to the one version that is held for this Python."""
    versions: dict[str, Version] = {}
    for line in _toml(HELD)["project"]["dependencies"]:
        requirement = Requirement(line)
        if _holds(requirement, python):
            name = canonicalize_name(requirement.name)
            assert name not in versions, f"{name} has two versions on Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            versions[name] = Version(specifier.version)
    return versions


def _direct() -> list[Requirement]:
    """Every requirement that pyproject.toml states: its own, of its extras and of its groups."""
    project = PYPROJECT["project"]
    lists = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PYPROJECT["dependency-groups"].values(),
    ]
    found = [Requirement(line) for lines in lists for line in lines]
    return [requirement for requirement in found if requirement.name != NAME]


def test_the_supported_pythons_are_those_of_requires_python() -> None:
    assert PYTHONS[0] == PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert len(PYTHONS) >= 4


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_held_within_its_bounds(python: str) -> None:
    held = _held(python)
    for requirement in _direct():
        if _holds(requirement, python):
            name = canonicalize_name(requirement.name)
            assert name in held, f"{name} is not held: uv run scripts/hold_versions.py"
            assert requirement.specifier.contains(held[name], prereleases=True), (
                f"{name} {held[name]} is held, but pyproject.toml wants {requirement.specifier}: "
                "uv run scripts/hold_versions.py"
            )


def test_what_dependencies_need_is_held_too() -> None:
    """Walks the metadata of what is installed, from the direct dependencies on."""
    python = ".".join(map(str, sys.version_info[:2]))
    held = _held(python)
    todo = [r for r in _direct() if _holds(r, python)]
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        assert name in held
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # of an extra that is not installed
        todo += [
            each
            for each in map(Requirement, needs)
            if any(_holds(each, python, extra) for extra in ("", *extras))
        ]
    assert len(done) > len(_direct())


def test_names_and_versions_alone() -> None:
    text = HELD.read_text(encoding="utf-8")
    assert "://" not in text
    for line in _toml(HELD)["project"]["dependencies"]:
        requirement = Requirement(line)
        assert requirement.url is None
        assert not requirement.extras
    assert _toml(HELD)["tool"] == {"uv": {"package": False}}, "no index, and nothing to install"


def test_an_installed_overlapkit_is_not_bound() -> None:
    """The wheel's requirements are the bounds of pyproject.toml; nothing in it names a version."""
    stated = {str(Requirement(line)) for line in PYPROJECT["project"]["dependencies"]}
    needs = [Requirement(line) for line in distribution(NAME).requires or []]
    assert {str(need) for need in needs if need.marker is None} == stated
    assert all(s.operator != "==" for need in needs for s in need.specifier)
