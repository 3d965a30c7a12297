"""The installed packages that overlap depends on, by their metadata: nothing is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from megatron.bridge.training.software import foreign_megatron_bridge, installed_version
from overlapkit.doctor.finding import Evidence, Finding

_SHOWN = {
    "torch": ("torch",),
    "megatron-core": ("megatron-core",),
    "transformer-engine": (
        "transformer-engine",
        "transformer-engine-torch",
        "transformer-engine-cu13",
        "transformer-engine-cu12",
    ),
    "nemo-run": ("nemo-run", "nemo_run"),
    "megatron-bridge": ("megatron-bridge",),
}
"""What is looked for, and the distributions that it may come as."""

_TE_PARTS = _SHOWN["transformer-engine"]
_CUDA = re.compile(r"""^cuda\b[^=\n]*=\s*['"](\d+)\.""", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        name: as it is commonly called.
        version: None where it is not installed.
        required: versions that overlapkit is made for; "" for any.
        note: what is worth knowing.
    """

    name: str
    version: str | None
    required: str
    note: str = ""


@cache
def required_versions() -> dict[str, str]:
    """Version bounds by package, as overlapkit's own metadata states them."""
    bounds: dict[str, str] = {}
    try:
        stated = metadata.requires("overlapkit") or []
    except metadata.PackageNotFoundError:
        stated = []
    for text in stated:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name in _SHOWN:
            bounds[requirement.name] = str(requirement.specifier)
    return bounds


def installed_packages(found: Callable[..., str | None] = installed_version) -> list[Package]:
    """Every package of interest, installed or not.

    Args:
        found: version of the first of some distributions that is installed, None where none is.
    """
    packages = []
    for name, distributions in _SHOWN.items():
        version, bounds = found(*distributions), required_versions().get(name, "")
        packages.append(Package(name, version, bounds))
    return packages


def in_bounds(package: Package) -> bool:
    """Whether an installed package is of a version that overlapkit is made for."""
    if package.version is None or not package.required:
        return True
    try:
        specifier = Requirement(f"{package.name}{package.required}").specifier
        return specifier.contains(Version(package.version), prereleases=True)
    except InvalidVersion:
        return False


def torch_cuda_major() -> int | None:
    """The CUDA release that the installed torch is built for; None for a CPU build, or none."""
    try:
        path = metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(path)).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError, UnicodeDecodeError):
        return None
    found = _CUDA.search(text)
    return int(found[1]) if found else None


def transformer_engine_parts() -> dict[str, str]:
    """The distributions of Transformer Engine that are installed, with their versions."""
    versions = ((name, installed_version(name)) for name in _TE_PARTS)
    return {name: version for name, version in versions if version is not None}


def package_findings(packages: list[Package]) -> Iterator[Finding]:
    """What in the installation breaks overlap, or this toolkit."""
    conflict = foreign_megatron_bridge()
    if conflict is not None:
        yield _finding(
            "packages.megatron-bridge",
            "Two packages hold the modules megatron.bridge.*, and one has overwritten the other",
            conflict.partition(": ")[0],
            conflict.rpartition(": ")[2],
        )
    shadow = shadowing_megatron(sys.path)
    if shadow is not None:
        yield _finding(
            "packages.megatron-shadowed",
            "megatron is no namespace package here: one folder hides what others put under it",
            f"{shadow} exists",
            "remove that file, or take its folder out of PYTHONPATH: megatron-core and "
            "megatron.bridge must be found beside each other",
        )
    for package in packages:
        if not in_bounds(package):
            yield _finding(
                f"packages.{package.name}",
                f"{package.name} is of another version than the rules are made for",
                f"{package.name} {package.version} is installed; {package.required} is expected",
                f"install {package.name}{package.required}",
            )
    yield from transformer_engine_findings(transformer_engine_parts(), torch_cuda_major())


def transformer_engine_findings(parts: dict[str, str], torch_cuda: int | None) -> Iterator[Finding]:
    """What keeps an installed Transformer Engine from being imported.

    Args:
        parts: its distributions, with their versions.
        torch_cuda: the CUDA release of torch.
    """
    told = ", ".join(f"{name} {version}" for name, version in parts.items())
    if len({version.partition("+")[0] for version in parts.values()}) > 1:
        yield _finding(
            "packages.transformer-engine-parts",
            "Transformer Engine's parts are of different versions, so that it cannot be imported "
            "and tensor-parallel overlap is off",
            told,
            "install one version of all of them: pip install transformer-engine[pytorch]",
        )
    built = {int(name[-2:]) for name in parts if name.endswith(("cu12", "cu13"))}
    if built and torch_cuda is not None and torch_cuda not in built:
        yield _finding(
            "packages.transformer-engine-cuda",
            "Transformer Engine is built for another CUDA release than torch, so that it cannot be "
            "imported and tensor-parallel overlap is off",
            f"{told}; torch is built for CUDA {torch_cuda}",
            f"install transformer-engine-cu{torch_cuda} in its place",
        )
    libraries = parts.keys() - {"transformer-engine", "transformer-engine-torch"}
    if libraries and "transformer-engine-torch" not in parts:
        yield _finding(
            "packages.transformer-engine-torch",
            "Transformer Engine is installed without its PyTorch side, so that tensor-parallel "
            "overlap is off",
            told,
            "pip install --no-build-isolation transformer-engine[pytorch]",
        )


def shadowing_megatron(folders: list[str]) -> str | None:
    """A file that makes `megatron` an ordinary package; None where there is none."""
    for folder in folders:
        file = Path(folder or ".") / "megatron" / "__init__.py"
        try:
            if file.is_file():
                return str(file)
        except OSError:
            continue
    return None


def _finding(id: str, message: str, seen: str, remedy: str) -> Finding:
    return Finding(id, "packages", message, (Evidence("packages", seen),), remedy)
