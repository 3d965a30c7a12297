"""What is left of a configuration that was made small enough to be trained here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from overlapkit.config.schema import shown


@dataclass(frozen=True)
class Change:
    """One setting that was changed.

    Attributes:
        what: its dotted key, or the size that was changed, such as "data parallelism".
        old: its value in the user's configuration; None where it was not set.
        new: its value here; None where it is not set.
        why: the reason, which completes the sentence "changed: ...".
    """

    what: str
    old: Any
    new: Any
    why: str

    @property
    def sentence(self) -> str:
        """For people: what, from what, to what, and why."""
        return f"{self.what}: {_said(self.old)} -> {_said(self.new)}: {self.why}"


@dataclass(frozen=True)
class Reduced:
    """A configuration that keeps the structure of the user's, and fits a few ranks.

    Attributes:
        settings: section to keys and values, for `Variant.settings`.
        ranks: processes that it is trained by.
        changed: what was changed.
        unproven: what cannot run here, and what therefore stays unproven; one sentence each, which
            begins with the key or the kind of parallelism that it is about.
        kept: what was kept on purpose.
    """

    settings: dict[str, dict[str, Any]]
    ranks: int
    changed: tuple[Change, ...] = ()
    unproven: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass
class Notes:
    """What the steps write down while they change settings."""

    changed: list[Change] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def change(self, what: str, old: Any, new: Any, why: str) -> None:
        """Note a change, if it is one."""
        if old != new:
            self.changed.append(Change(what, old, new, why))

    def changes(
        self, section: str, new: Mapping[str, Any], old: Mapping[str, Any], why: str
    ) -> None:
        """Note every key of `new` whose value differs from that in `old`."""
        for key, value in new.items():
            self.change(f"{section}.{key}", old.get(key), value, why)


def _said(value: Any) -> str:
    return "not set" if value is None else shown(value)
