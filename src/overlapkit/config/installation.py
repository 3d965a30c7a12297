"""The versions in a checkout or an installation, read as data: nothing in it is executed."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron.bridge.training.versions import as_version
from overlapkit.config.text_file import exists, read_text
from overlapkit.errors import InputError
from overlapkit.output.console import encodable

_LARGEST_FILE = 256 * 1024
"""Bytes of a version file or a METADATA; those of the packages looked for are below 30 KiB."""

_MOST_ENTRIES = 50_000
"""Entries of a folder of installed packages."""

BRIDGE_FILE = Path("src/megatron/bridge/package_info.py")
CORE_FILE = Path("megatron/core/package_info.py")
_SUBMODULE = Path("3rdparty/Megatron-LM")
"""Where a checkout of Megatron-Bridge has the Megatron-LM that it pins."""

_ENVIRONMENTS = (".", ".venv", "venv", "local", "usr/local", "usr")
_PACKAGES = ("lib/python3*/site-packages", "lib/python3*/dist-packages", "Lib/site-packages")
"""Where a virtual environment, a checkout with one in it, or a system's root has its packages."""

_DISTRIBUTIONS = {
    "megatron-core": "core",
    "megatron-bridge": "bridge",
    "torch": "torch",
    "transformer-engine": "te",
    "transformer-engine-torch": "te",
    "transformer-engine-cu13": "te",
    "transformer-engine-cu12": "te",
}
"""Distributions of interest, and which of `Installation`'s versions each is."""

_WHAT = "checkout or installation (--stack)"


@dataclass(frozen=True)
class Installation:
    """The versions that a checkout or an installation has; None for what is not in it.

    Attributes:
        path: as the user named it.
        core: megatron-core's.
        bridge: Megatron-Bridge's.
        te: Transformer Engine's.
        torch: torch's.
    """

    path: str
    core: str | None = None
    bridge: str | None = None
    te: str | None = None
    torch: str | None = None


def read_installation(name: str) -> Installation:
    """The versions in a folder.

    It is a checkout of Megatron-Bridge (with the Megatron-LM that it pins, where that submodule is
    checked out), a checkout of Megatron-LM, a virtual environment, or a folder of installed
    packages. A checkout's own version files win over the packages beside them.

    Raises:
        InputError: it is not a folder that can be read, has neither megatron-core nor
            Megatron-Bridge, or has one package in several versions.
    """
    shown = encodable(name)
    if not name or not exists(name):
        raise InputError(f"--stack {shown}: no such folder; name a {_WHAT}")
    root = Path(name)
    if not root.is_dir():
        raise InputError(f"--stack {shown}: is not a folder; name a {_WHAT}")
    found = _of_packages(root, shown)
    core = declared_version(root / _SUBMODULE / CORE_FILE) or declared_version(root / CORE_FILE)
    # The folder src of a checkout, and one that contains the package, have it as well.
    bridge = declared_version(root / BRIDGE_FILE) or declared_version(
        root / BRIDGE_FILE.relative_to("src")
    )
    if core is not None:
        found["core"] = core
    if bridge is not None:
        found["bridge"] = bridge
    if not found.keys() & {"core", "bridge"}:
        raise InputError(
            f"--stack {shown}: contains neither megatron-core nor Megatron-Bridge; name a checkout "
            "of one of them, a virtual environment, or its site-packages"
        )
    return Installation(shown, **found)


def declared_version(file: Path) -> str | None:
    """The version that a package_info.py declares; None where there is no such file.

    Raises:
        InputError: it cannot be read, or declares none.
    """
    if not exists(str(file)):
        return None
    text = read_text(str(file), what="version file", most=_LARGEST_FILE)
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        statements = []
    constants = {
        target.id: each.value.value
        for each in statements
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant)
        for target in each.targets
        if isinstance(target, ast.Name)
    }
    parts = [constants.get(part) for part in ("MAJOR", "MINOR", "PATCH")]
    version = constants.get("__version__")
    if all(isinstance(part, int) for part in parts):
        version = ".".join(map(str, parts)) + str(constants.get("PRE_RELEASE") or "")
    return _checked(version, encodable(str(file)))


def _checked(version: object, place: str) -> str:
    """A version, if it is one.

    Raises:
        InputError: it is none.
    """
    try:
        as_version(str(version))
    except ValueError:
        raise InputError(
            f"{place}: declares no version; give --core and --bridge instead of --stack"
        ) from None
    return str(version)


def _of_packages(root: Path, shown: str) -> dict[str, str]:
    """The versions of the packages that are installed in a folder, by their metadata.

    Raises:
        InputError: a folder or metadata cannot be read, or one package has several versions.
    """
    order = list(_DISTRIBUTIONS)
    by_name: dict[str, set[str]] = {}
    for name, version in _distributions(root, shown):
        by_name.setdefault(name, set()).add(version)
    found: dict[str, str] = {}
    for name in sorted(by_name, key=order.index):
        versions = sorted(by_name[name])
        if len(versions) > 1:
            raise InputError(
                f"--stack {shown}: contains {name} in several versions ({', '.join(versions)}); "
                "name one folder of installed packages"
            )
        found.setdefault(_DISTRIBUTIONS[name], versions[0])
    return found


def _distributions(root: Path, shown: str) -> Iterator[tuple[str, str]]:
    """Name and version of each distribution of interest in a folder or an environment in it."""
    folders = [root]
    folders += [
        inside
        for environment in _ENVIRONMENTS
        for pattern in _PACKAGES
        for inside in sorted((root / environment).glob(pattern))
    ]
    for folder in {os.path.realpath(each): each for each in folders}.values():
        for entry in _metadata_folders(folder, shown):
            file = folder / entry / "METADATA"
            text = read_text(str(file), what="package metadata", most=_LARGEST_FILE)
            head = text.partition("\n\n")[0]
            name = re.search(r"^Name:[ \t]*(\S+)", head, re.MULTILINE)
            version = re.search(r"^Version:[ \t]*(\S+)", head, re.MULTILINE)
            normal = _normal(name[1]) if name else ""
            if normal in _DISTRIBUTIONS:
                yield normal, _checked(version[1] if version else None, encodable(str(file)))


def _metadata_folders(folder: Path, shown: str) -> list[str]:
    """The metadata folders of distributions of interest, such as megatron_core-0.18.2.dist-info."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= _MOST_ENTRIES:
                    raise InputError(f"--stack {shown}: has more than {_MOST_ENTRIES} entries")
                name, _, _ = entry.name.removesuffix(".dist-info").rpartition("-")
                if entry.name.endswith(".dist-info") and _normal(name) in _DISTRIBUTIONS:
                    names.append(entry.name)
    except OSError as error:
        raise InputError(f"--stack {shown}: cannot be read: {error.strerror}") from None
    return sorted(names)


def _normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
