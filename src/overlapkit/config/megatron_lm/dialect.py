"""How a launcher's command line differs from Megatron-LM's own, which it passes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _none(_: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Dialect:
    """Whose flags they are.

    Attributes:
        name: of the program, as its makers write it.
        either_spelling: whether a name may have - or _, and every switch is followed by true or
            false.
        own: whether a flag that Megatron-LM does not have is the program's own.
        defaults: the dotted keys that it sets by itself, from the flags that are given.
        settled: as `defaults`, where it wins over a flag.
    """

    name: str
    either_spelling: bool = False
    own: Callable[[str], bool] = lambda _: False
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]] = _none
    settled: Callable[[Mapping[str, Any]], dict[str, Any]] = _none


MEGATRON_LM = Dialect("Megatron-LM")
