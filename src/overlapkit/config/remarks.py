"""What a reader of an answer must know about how the configuration was read."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.versions import (
    KNOWN,
    MAIN,
    Package,
    Stack,
    as_version,
    nearest_known,
    spoken,
)
from overlapkit.config.reading import StackBasis
from overlapkit.config.run import Settings

_SHORT: dict[Package, str] = {"core": "core", "bridge": "Megatron-Bridge"}


def remarks(settings: Settings) -> tuple[str, ...]:
    """Sentences about the versions that were taken, and about what was not looked at."""
    return tuple(_about_versions(settings.basis))


def _about_versions(basis: StackBasis) -> Iterator[str]:
    if basis.overridden is not None:
        for package in _SHORT:
            found = basis.overridden.version(package)
            if found is not None:
                yield f"--{package} wins over {basis.path}, which has {found}"
    if basis.source in ("given", "path"):
        yield from _unchecked(basis.stack)


def _unchecked(stack: Stack) -> Iterator[str]:
    """That the rules were not checked against these versions, where they were not."""
    for package, name in _SHORT.items():
        version = stack.version(package)
        checked = [known.version(package) or MAIN for known in KNOWN]
        if version is None or as_version(version) in map(as_version, (*checked, MAIN)):
            continue
        asked = as_version(version)
        known = f"the rules were checked against {spoken(checked)}"
        if asked < as_version(checked[0]):
            yield f"{name} {version} is older than all that are known here: {known}"
        elif asked > max(map(as_version, checked)):
            yield f"{name} {version} is newer than all that are known here: {known}"
        else:
            near = checked[nearest_known(version, package)]
            yield f"{name} {version} is not known by itself: {known}; {near} is the nearest"
