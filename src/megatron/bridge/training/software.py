"""What is installed beside Megatron-Bridge: Transformer Engine and torch, and their versions.

Rules query a `Software`. In a training run it is what is really installed. `overlapkit explain` can
read a cluster's configuration on a laptop, and states what it assumes instead.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from packaging.version import Version

from megatron.bridge.training.versions import MAIN, NEWEST, Stack, complete

# The metapackage, then the wheels that may be installed without it.
_TE_DISTRIBUTIONS = (
    "transformer-engine",
    "transformer-engine-torch",
    "transformer-engine-cu13",
    "transformer-engine-cu12",
)


class Software(Protocol):
    """What rules need to know about installed software."""

    @property
    def stack(self) -> Stack:
        """The versions of Megatron-Bridge and Megatron-Core."""

    def have_te(self) -> bool:
        """Whether Transformer Engine's PyTorch side can be imported."""

    def is_te_min_version(self, version: str) -> bool:
        """Whether Transformer Engine is available and at least `version`."""

    def is_torch_min_version(self, version: str) -> bool:
        """Whether torch is at least `version`."""


@dataclass(frozen=True)
class AssumedSoftware:
    """Software as stated by the caller instead of looked up.

    Attributes:
        te: Transformer Engine's version; "any" is recent enough for every rule, None is absent.
        torch: torch's version, or "any".
        stack: the versions of Megatron-Bridge and Megatron-Core; by default the newest known.
    """

    te: str | None = "any"
    torch: str = "any"
    stack: Stack = NEWEST

    def have_te(self) -> bool:
        return self.te is not None

    def is_te_min_version(self, version: str) -> bool:
        return self.te is not None and _at_least(self.te, version)

    def is_torch_min_version(self, version: str) -> bool:
        return _at_least(self.torch, version)


def _at_least(version: str, minimum: str) -> bool:
    return version == "any" or Version(version) >= Version(minimum)


def installed_version(*distributions: str) -> str | None:
    """Version of the first of `distributions` that is installed; None when none is."""
    # Imported here: it takes a twentieth of the start-up time of a command that looks nothing up.
    from importlib import metadata

    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def foreign_megatron_bridge() -> str | None:
    """What to do about NVIDIA's own megatron-bridge in this environment; None without it.

    It installs files with the same names as ours, so the later installation overwrote the other.
    """
    version = installed_version("megatron-bridge")
    if version is None:
        return None
    return (
        f"NVIDIA's megatron-bridge {version} is installed in the same environment and contains "
        "modules of the same names (megatron.bridge.*), so one has overwritten the other: "
        "uninstall megatron-bridge and reinstall overlapkit, or use separate environments"
    )


@cache
def installed_stack() -> Stack:
    """The installed megatron-core with the main branch of Megatron-Bridge, which we follow."""
    return complete(installed_version("megatron-core"), MAIN)


def te_version() -> str | None:
    """Version of the installed Transformer Engine; None when it is not installed."""
    return installed_version(*_TE_DISTRIBUTIONS)


@cache
def te_importable() -> bool:
    """Whether `transformer_engine.pytorch` can be imported; determined by importing it, once.

    A Transformer Engine built for another torch or CUDA fails with an OSError or a RuntimeError
    rather than an ImportError, and the model cannot use it either.
    """
    try:
        importlib.import_module("transformer_engine.pytorch")
    except (ImportError, OSError, RuntimeError, AttributeError):
        return False
    return True


def is_te_min_version(version: str) -> bool:
    """Whether the installed Transformer Engine is at least `version`; False without one."""
    installed = te_version()
    return installed is not None and _at_least(installed, version)


def is_torch_min_version(version: str) -> bool:
    """Whether the installed torch is at least `version`; False without one."""
    installed = installed_version("torch")
    return installed is not None and _at_least(installed, version)
