"""Where the user set what a decision is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.edits import ENV
from megatron.bridge.training.job_environment import ENV_VARS
from overlapkit.config.places import Place
from overlapkit.config.run import Settings

MEGATRON_LM = "megatron_lm."
"""Before the name of a flag that is no field of a configuration."""

_HOMES = ("comm_overlap", "mixed_precision")
"""Sections that set knobs of model, ddp and optimizer."""


def decision_place(settings: Settings, decision: Decision) -> Place | None:
    """Where the user set what a decision is about; None where nothing that they set is.

    It is the place of the knob, or of the same key in `comm_overlap` or `mixed_precision`: the one
    with the requested value, else one with any value. Without them it is the place of a setting
    that the remedy changes: the reason rests on that one.
    """
    flat = settings.flat()
    if decision.knob.startswith(MEGATRON_LM):
        return _set_place(settings, flat, decision.knob)
    keys = list(dict.fromkeys(_homes(decision.knob)))
    requested = decision.requested
    tests = (
        lambda key: requested is not None and flat.get(key) == requested,
        lambda key: flat.get(key) is not None or key not in flat,
        lambda key: True,
    )
    for test in tests:
        for key in keys:
            place = settings.where.get(key)
            if place is not None and test(key):
                return place
    return next(filter(None, (_set_place(settings, flat, e.key) for e in decision.edits)), None)


def _set_place(settings: Settings, flat: Mapping[str, Any], knob: str) -> Place | None:
    """The place where a setting has a value."""
    if knob.startswith(MEGATRON_LM):
        passed = settings.launch.passed if settings.launch is not None else {}
        return passed.get("--" + knob.removeprefix(MEGATRON_LM).replace("_", "-"))
    for key in _homes(knob):
        if key in settings.where and (flat.get(key) is not None or key not in flat):
            return settings.where[key]
    return None


def _homes(knob: str) -> Iterator[str]:
    """The keys of `Settings.where` under which a knob can be set, the likeliest first."""
    if knob.startswith(ENV):
        name = knob.removeprefix(ENV)
        yield from (f"{ENV}{name}", f"{ENV_VARS}.{name}")
        return
    section, _, key = knob.partition(".")
    # A userbuffers setting is several levels deep: the deepest one whose place is known counts.
    parts = key.split(".")
    for depth in range(len(parts), 0, -1):
        shorter = ".".join(parts[:depth])
        yield from (f"{each}.{shorter}" for each in (section, *_HOMES))
    if section in _HOMES:
        # The section is a recipe's name, and no mapping.
        yield section
