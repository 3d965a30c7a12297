"""Stacks of software, and the versions for which a rule holds.

Megatron-Bridge pins the Megatron-Core that it runs on, so either version gives the other. A rule
states the versions it holds for as ranges, as data beside the rule; nothing else in a rule asks
for a version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from packaging.version import Version

Package = Literal["core", "bridge", "te", "torch"]
"""megatron-core (and the arguments.py of Megatron-LM at the same tag), Megatron-Bridge, Transformer
Engine, torch."""

NAMES: dict[Package, str] = {
    "core": "megatron-core",
    "bridge": "Megatron-Bridge",
    "te": "Transformer Engine",
    "torch": "torch",
}
"""How each package is written."""

MAIN = "main"
"""The development branch: newer than every release that is known here."""

_MAIN = Version("9999")


@cache
def as_version(text: str) -> Version:
    """A version to compare; ``main`` (or ``HEAD``) is newer than every release.

    A pre-release, such as the ``0.20.0rc0`` that a development branch calls itself, is compared as
    its release, which has most of its changes; so is a local build, such as ``0.18.2+abc``.

    Raises:
        ValueError: the text is not a version.
    """
    name = text.strip().removeprefix("core_").removeprefix("v")
    if name.lower() in ("main", "head", "dev"):
        return _MAIN
    try:
        return Version(Version(name).base_version)
    except ValueError:
        # InvalidVersion is one; so is the error for a number of thousands of digits.
        raise ValueError(
            f"{text[:40]!r} is not a version: give a number such as 0.18.2, or main"
        ) from None


@dataclass(frozen=True)
class Stack:
    """The versions of a run's software; None where a version is not known.

    Attributes:
        core: megatron-core's; for Megatron-LM, the tag of the same number.
        bridge: Megatron-Bridge's.
    """

    core: str | None = None
    bridge: str | None = None

    def version(self, package: Package) -> str | None:
        """The version of a package; None where it is not known or not part of the stack."""
        return {"core": self.core, "bridge": self.bridge}.get(package)

    def __str__(self) -> str:
        known = [
            f"{NAMES[package]} {version}"
            for package in ("bridge", "core")
            if (version := self.version(package)) is not None
        ]
        return " on ".join(known) or "versions not known"


KNOWN: tuple[Stack, ...] = (
    Stack("0.16.1", "0.3.1"),
    Stack("0.17.1", "0.4.2"),
    Stack("0.18.2", "0.5.1"),
    Stack("0.19.0", "0.6.0"),
    Stack("0.20.0", MAIN),
)
"""The stacks that the rules were checked against, oldest first. Each is a tag of Megatron-Bridge
with the Megatron-LM commit that it pins as a submodule; the last is its main branch of 2026-08-22
(067f987df), which pins Megatron-LM 2a75ac12c54b, megatron-core 0.20.0 before its release."""

_RELEASE_OF_MAIN = Version("0.7.0")
"""From this version on, a Megatron-Bridge has what its main branch had when it was looked at: the
newest release then was 0.6.0."""

NEWEST = KNOWN[-1]
"""What is assumed of a run whose versions nothing shows."""


@dataclass(frozen=True)
class Range:
    """Versions of one package, from `since` up to and not including `until`.

    Attributes:
        package: whose versions.
        since: the first version for which the rule holds; None: every older one as well.
        until: the first for which it no longer does; None: every newer one as well.
    """

    package: Package
    since: str | None = None
    until: str | None = None

    def contains(self, version: str) -> bool:
        """Whether the version is in the range."""
        asked = as_version(version)
        return (self.since is None or asked >= self._bound(self.since)) and (
            self.until is None or asked < self._bound(self.until)
        )

    def _bound(self, text: str) -> Version:
        bound = as_version(text)
        return _RELEASE_OF_MAIN if self.package == "bridge" and bound == _MAIN else bound

    def __str__(self) -> str:
        name = NAMES[self.package]
        if self.since is None:
            return f"{name} < {self.until}" if self.until else f"every {name}"
        return f"{name} >= {self.since}" + (f", < {self.until}" if self.until else "")


def holds(ranges: Iterable[Range], stack: Stack) -> bool:
    """Whether every range contains the stack's version of its package.

    A version that the stack does not give is taken to be the newest.
    """
    return all(
        each.contains(stack.version(each.package) or NEWEST.version(each.package) or MAIN)
        for each in ranges
    )


def complete(core: str | None, bridge: str | None) -> Stack:
    """The stack with these versions; the one that is not given is what goes with the other.

    Raises:
        ValueError: one of them is not a version.
    """
    if core is None and bridge is None:
        return NEWEST
    if core is None and bridge is not None:
        return Stack(_beside(bridge, "bridge").core, bridge)
    assert core is not None
    return Stack(core, bridge or _beside(core, "core").bridge)


def _beside(version: str, package: Package) -> Stack:
    """The known stack that goes with a version of a package: see `nearest_known`."""
    return KNOWN[nearest_known(version, package)]


def nearest_known(version: str, package: Package) -> int:
    """The index in `KNOWN` of the stack that is nearest to a version of a package.

    It is the newest of the same minor release, such as 0.18.2 for 0.18.0; where none is known, the
    newest that is older; and the oldest for what is older than all.

    Raises:
        ValueError: it is not a version.
    """
    asked = as_version(version)
    if package == "bridge" and asked >= _RELEASE_OF_MAIN:
        return len(KNOWN) - 1
    known = [as_version(stack.version(package) or MAIN) for stack in KNOWN]
    same = [i for i, each in enumerate(known) if each.release[:2] == asked.release[:2]]
    older = [i for i, each in enumerate(known) if each <= asked]
    return same[-1] if same else older[-1] if older else 0


def spoken(versions: Sequence[str]) -> str:
    """Versions as a sentence lists them: ``0.16.1, 0.17.1 and 0.18.2``."""
    return " and ".join(filter(None, [", ".join(versions[:-1]), *versions[-1:]]))
