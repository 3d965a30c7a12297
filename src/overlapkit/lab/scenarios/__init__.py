"""The scenarios by their names."""

from __future__ import annotations

from overlapkit.errors import InputError
from overlapkit.lab.scenario import Scenario
from overlapkit.lab.scenarios import (
    bucket,
    config,
    dp,
    dp_pp,
    grid,
    pp,
    precision,
    predict,
    silent,
    tp,
)

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        dp,
        bucket,
        pp,
        tp,
        dp_pp,
        precision,
        silent,
        grid,
        predict,
        config,
    )
}

DEFAULT = ("dp", "bucket")
"""What runs without arguments."""

OWN = "config"
"""The scenario of --config, which it needs; runs by default with that option."""


def find(name: str) -> Scenario:
    """The scenario of a name.

    Raises:
        InputError: there is none; the message lists the known ones.
    """
    if name not in SCENARIOS:
        raise InputError(f"unknown scenario {name!r}; choose from {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
