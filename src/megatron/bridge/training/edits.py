"""A remedy as changes of settings: what `overlapkit explain --fix` writes into a user's file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

ENV = "env."
"""Before the name of an environment variable: ``env.CUDA_DEVICE_MAX_CONNECTIONS``."""


class Removed:
    """The value of a setting that a remedy takes away, so that its default applies."""

    def __repr__(self) -> str:
        return "REMOVED"


REMOVED: Final = Removed()
"""The only `Removed`."""


@dataclass(frozen=True)
class Edit:
    """One setting that a remedy changes.

    Attributes:
        key: dotted, section first, as in `Decision.knob`: ``ddp.overlap_param_gather``;
            ``env.NAME`` for a variable of the job's environment; ``megatron_lm.NAME`` for a flag of
            Megatron-LM that is no field of a configuration.
        value: as a YAML file has it, enums and dtypes as their names; `REMOVED` to take it away.
    """

    key: str
    value: Any

    def __str__(self) -> str:
        """``key=value``, or that the key is to be removed; a variable by its own name."""
        if isinstance(self.value, Removed):
            return f"{self.name} removed"
        return f"{self.name}={_spelt(self.value)}"

    @property
    def is_variable(self) -> bool:
        """Whether it changes the job's environment."""
        return self.key.startswith(ENV)

    @property
    def name(self) -> str:
        """The key, or the variable's own name."""
        return self.key.removeprefix(ENV)


def _spelt(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(edits: Iterable[Edit]) -> str:
    """Edits as a remedy says them: "set a=1 and b=2, and remove c"."""
    edits = list(edits)
    kept = [str(e) for e in edits if not isinstance(e.value, Removed)]
    gone = [e for e in edits if isinstance(e.value, Removed)]
    parts = [
        f"{verb} {listed(names)}"
        for verb, names in (
            ("set", kept),
            ("remove", [e.name for e in gone if not e.is_variable]),
            ("unset", [e.name for e in gone if e.is_variable]),
        )
        if names
    ]
    return ", and ".join(parts)


def either(edits: Iterable[Edit], otherwise: str = "") -> str:
    """A remedy with two alternatives: the edits, or something else in words."""
    return ", or ".join(filter(None, (in_words(edits), otherwise)))


def listed(names: list[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
