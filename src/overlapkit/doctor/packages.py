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
"""The packages of interest, and the distributions that contain each."""

_TE_PARTS = _SHOWN["transformer-engine"]
_CUDA = re.compile(r"""^cuda\b[^=\n]*=\s*['"](\d+)\.""", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        name: its common name.
        version: None where it is not installed.
        required: versions that overlapkit supports; empty for any version.
    """

    name: str
    version: str | None
    required: str


@cache
def required_versions() -> dict[str, str]:
    """Version bounds by package, from overlapkit's own metadata."""
    bounds: dict[str, str] = {}
    try:
        requirements = metadata.requires("overlapkit") or []
    except metadata.PackageNotFoundError:
        requirements = []
    for text in requirements:
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
        found: the version of the first of some distributions that is installed; None for none.
    """
    packages = []
    for name, distributions in _SHOWN.items():
        version, bounds = found(*distributions), required_versions().get(name, "")
        packages.append(Package(name, version, bounds))
    return packages


def in_bounds(package: Package) -> bool:
    """Whether a package is not installed, or has a version that overlapkit supports."""
    if package.version is None or not package.required:
        return True
    try:
        specifier = Requirement(f"{package.name}{package.required}").specifier
        return specifier.contains(Version(package.version), prereleases=True)
    except InvalidVersion:
        return False


def torch_cuda_major() -> int | None:
    """The CUDA release of the installed torch; None for a CPU build, or without torch."""
    try:
        path = metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(path)).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError, UnicodeDecodeError):
        return None
    found = _CUDA.search(text)
    return int(found[1]) if found else None


def transformer_engine_parts() -> dict[str, str]:
    """The installed distributions of Transformer Engine, with their versions."""
    versions = ((name, installed_version(name)) for name in _TE_PARTS)
    return {name: version for name, version in versions if version is not None}


def package_findings(packages: list[Package]) -> Iterator[Finding]:
    """What in the installation disables overlap, or breaks overlapkit."""
    conflict = foreign_megatron_bridge()
    if conflict is not None:
        yield _finding(
            "packages.megatron-bridge",
            "Two packages contain the modules megatron.bridge.*, and one has overwritten the other",
            conflict.partition(": ")[0],
            conflict.rpartition(": ")[2],
        )
    shadow = shadowing_megatron(sys.path)
    if shadow is not None:
        yield _finding(
            "packages.megatron-shadowed",
            "megatron is not a namespace package here: one folder hides the others that contain it",
            f"{shadow} exists",
            "remove that file, or remove its folder from PYTHONPATH: both megatron-core and "
            "megatron.bridge must be importable",
        )
    for package in packages:
        if not in_bounds(package):
            yield _finding(
                f"packages.{package.name}",
                f"{package.name} has a version that the rules do not support",
                f"{package.name} {package.version} is installed; supported is {package.required}",
                f"install {package.name}{package.required}",
            )
    yield from transformer_engine_findings(transformer_engine_parts(), torch_cuda_major())


def transformer_engine_findings(parts: dict[str, str], torch_cuda: int | None) -> Iterator[Finding]:
    """Why an installed Transformer Engine cannot be imported.

    Args:
        parts: its distributions, with their versions.
        torch_cuda: the CUDA release of torch.
    """
    installed = ", ".join(f"{name} {version}" for name, version in parts.items())
    if len({version.partition("+")[0] for version in parts.values()}) > 1:
        yield _finding(
            "packages.transformer-engine-parts",
            "The parts of Transformer Engine have different versions, so it cannot be imported and "
            "tensor-parallel overlap is off",
            installed,
            "install one version of all of them: pip install transformer-engine[pytorch]",
        )
    built = {int(name[-2:]) for name in parts if name.endswith(("cu12", "cu13"))}
    if built and torch_cuda is not None and torch_cuda not in built:
        yield _finding(
            "packages.transformer-engine-cuda",
            "Transformer Engine is built for a different CUDA release than torch, so it cannot be "
            "imported and tensor-parallel overlap is off",
            f"{installed}; torch is built for CUDA {torch_cuda}",
            f"install transformer-engine-cu{torch_cuda} instead",
        )
    libraries = parts.keys() - {"transformer-engine", "transformer-engine-torch"}
    if libraries and "transformer-engine-torch" not in parts:
        yield _finding(
            "packages.transformer-engine-torch",
            "Transformer Engine is installed without its PyTorch part, so tensor-parallel overlap "
            "is off",
            installed,
            "pip install --no-build-isolation transformer-engine[pytorch]",
        )


def shadowing_megatron(folders: list[str]) -> str | None:
    """A file that makes `megatron` an ordinary package; None without one."""
    for folder in folders:
        file = Path(folder or ".") / "megatron" / "__init__.py"
        try:
            if file.is_file():
                return str(file)
        except OSError:
            continue
    return None


def _finding(id: str, message: str, evidence: str, remedy: str) -> Finding:
    return Finding(id, "packages", message, (Evidence("packages", evidence),), remedy)
