"""The versions that --core and --bridge name, where they name several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from packaging.version import Version

from megatron.bridge.training.versions import KNOWN, NAMES, Package, as_version
from overlapkit.config.reading import Reading
from overlapkit.errors import InputError

ALL = "all"
"""Names every version that the rules were checked against."""


def asked_readings(
    cores: Sequence[str], bridges: Sequence[str], reading: Reading
) -> tuple[Package, list[Reading]]:
    """One reading for each version that is asked for, oldest first; one where none is.

    Args:
        cores: values of --core; each a version, a list with commas, or `ALL`.
        bridges: values of --bridge, likewise.
        reading: what else is stated about the job's software.

    Returns:
        The package whose versions they are, and the readings.

    Raises:
        InputError: a value is no version, or both name several.
    """
    core, bridge = _versions("core", cores), _versions("bridge", bridges)
    if len(core) > 1 and len(bridge) > 1:
        raise InputError(
            "--core and --bridge both name several versions: give several to one of them; each "
            "Megatron-Bridge pins a megatron-core"
        )
    if len(bridge) > 1:
        one = core[0] if core else None
        return "bridge", [replace(reading, core=one, bridge=each) for each in bridge]
    one = bridge[0] if bridge else None
    return "core", [replace(reading, core=each, bridge=one) for each in core or (None,)]


def _versions(package: Package, given: Sequence[str]) -> list[str]:
    """Each version once, oldest first.

    Raises:
        InputError: a value is no version.
    """
    texts = [part.strip() for text in given for part in text.split(",")]
    found: dict[Version, str] = {}
    for text in texts:
        if text.lower() == ALL:
            known = [stack.version(package) or "" for stack in KNOWN]
            found |= {as_version(version): version for version in known}
            continue
        try:
            found.setdefault(as_version(text), text)
        except ValueError as error:
            raise InputError(
                f"--{package} {text}: {error}; {ALL} is every {NAMES[package]} that is known here"
            ) from None
    return [found[version] for version in sorted(found)]
