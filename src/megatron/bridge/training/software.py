"""What is installed beside Megatron-Bridge: Transformer Engine and torch, and their versions.

Rules ask a `Software`. A training run asks what is really installed; `overlapkit explain` reads a
configuration on a laptop for a cluster, and states what it assumes instead.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from packaging.version import Version

# The metapackage, then the wheels that may be installed without it.
_TE_DISTRIBUTIONS = (
    "transformer-engine",
    "transformer-engine-torch",
    "transformer-engine-cu13",
    "transformer-engine-cu12",
)


class Software(Protocol):
    """The questions that rules ask about installed software."""

    def have_te(self) -> bool:
        """Whether Transformer Engine's PyTorch side can be imported."""

    def is_te_min_version(self, version: str) -> bool:
        """Whether Transformer Engine is there and at least `version`."""

    def is_torch_min_version(self, version: str) -> bool:
        """Whether torch is at least `version`."""


@dataclass(frozen=True)
class AssumedSoftware:
    """Software as stated by the caller instead of looked up.

    Attributes:
        te: Transformer Engine's version, "any" for one new enough for every rule, None for absent.
        torch: torch's version, or "any".
    """

    te: str | None = "any"
    torch: str = "any"

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
    # Imported here: it costs a twentieth of the start of a command that looks nothing up.
    from importlib import metadata

    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def foreign_megatron_bridge() -> str | None:
    """What to do about NVIDIA's own megatron-bridge in this environment; None where it is not.

    It installs files of the same names as ours, so whichever came last has overwritten the other.
    """
    version = installed_version("megatron-bridge")
    if version is None:
        return None
    return (
        f"NVIDIA's megatron-bridge {version} is installed in the same environment and holds "
        "modules of the same names (megatron.bridge.*), so one has overwritten the other: "
        "uninstall megatron-bridge and reinstall overlapkit, or use separate environments"
    )


def te_version() -> str | None:
    """Version of the installed Transformer Engine; None when it is not installed."""
    return installed_version(*_TE_DISTRIBUTIONS)


@cache
def te_importable() -> bool:
    """Whether `transformer_engine.pytorch` can be imported; found out by importing it, once.

    An installed Transformer Engine built for another torch or CUDA fails with an OSError or a
    RuntimeError rather than an ImportError, and is as useless to the model.
    """
    try:
        importlib.import_module("transformer_engine.pytorch")
    except (ImportError, OSError, RuntimeError, AttributeError):
        return False
    return True


def is_te_min_version(version: str) -> bool:
    """Whether the installed Transformer Engine is at least `version`; False when there is none."""
    installed = te_version()
    return installed is not None and _at_least(installed, version)


def is_torch_min_version(version: str) -> bool:
    """Whether the installed torch is at least `version`; False when there is none."""
    installed = installed_version("torch")
    return installed is not None and _at_least(installed, version)
