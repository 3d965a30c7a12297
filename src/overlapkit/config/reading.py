"""How configurations are read: for which versions of the software, and how strictly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

from megatron.bridge.training.versions import Stack, as_version, complete
from overlapkit.errors import InputError

if TYPE_CHECKING:
    from overlapkit.config.installation import Installation
    from overlapkit.config.run import Settings

StackSource = Literal["given", "path", "fields", "unknown"]
"""How the versions of a run are known: as the user gave them, from the checkout or installation of
--stack, from the configuration's own fields, or not at all, so that the newest known are taken."""


@dataclass(frozen=True)
class StackBasis:
    """The versions whose rules are applied to a run, and how they are known.

    Attributes:
        stack: the versions; for Megatron-LM without Megatron-Bridge's.
        source: how they are known.
        candidates: the versions that the run may have, oldest first, of which `stack` is the
            newest; empty where they are not known.
        path: the checkout or installation that they were read from; None without one.
        overridden: of the versions at `path`, those for which the user gave others; None for none.
    """

    stack: Stack
    source: StackSource = "unknown"
    candidates: tuple[Stack, ...] = ()
    path: str | None = None
    overridden: Stack | None = None


_Given = TypeVar("_Given")


@dataclass(frozen=True)
class Reading:
    """What the user states about the job's software; the same for every command.

    Attributes:
        core: megatron-core's version (or Megatron-LM's tag), or main; None where it is not given.
        bridge: Megatron-Bridge's version, or main, likewise.
        stack: a checkout or an installation that has the versions. `core` and `bridge` win.
        allow_unknown: whether a key that looks like a misspelt knob is passed over.
    """

    core: str | None = None
    bridge: str | None = None
    stack: str | None = None
    allow_unknown: bool = False

    @cached_property
    def installation(self) -> Installation | None:
        """The versions at `stack`; None where it is not given.

        Raises:
            InputError: as `config.installation.read_installation`.
        """
        if self.stack is None:
            return None
        from overlapkit.config.installation import read_installation

        return read_installation(self.stack)

    @property
    def versions(self) -> Stack | None:
        """The versions that are given; None where none is.

        Raises:
            InputError: `core` or `bridge` is not a version, or as `installation`.
        """
        for option, version in (("--core", self.core), ("--bridge", self.bridge)):
            try:
                as_version(version or "main")
            except ValueError as error:
                raise InputError(f"{option} {version}: {error}") from None
        found = self.installation
        core = self.core or (found.core if found is not None else None)
        bridge = self.bridge or (found.bridge if found is not None else None)
        return None if core is None and bridge is None else complete(core, bridge)

    def dated(self, settings: Settings) -> Settings:
        """The settings for the versions that are given; as they are where none is.

        Raises:
            InputError: as `versions`.
        """
        stack = self.versions
        if stack is None:
            return settings
        found = self.installation
        path, overridden = None, None
        if found is not None:
            path = found.path
            overridden = Stack(
                found.core if self.core else None, found.bridge if self.bridge else None
            )
        return replace(
            settings,
            stacks=(stack,),
            stack_given=self.core is not None or self.bridge is not None,
            stack_path=path,
            stack_overridden=overridden if overridden != Stack() else None,
        )
