"""Switches whose default is another one in Megatron-LM than in Megatron-Bridge.

A field that Megatron-LM's parser knows as ``--no-FIELD`` is on without the flag, and one that it
knows as ``--FIELD`` is off. Where Megatron-Bridge's default is the opposite, a translation writes
the value out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from megatron.bridge.training.versions import MAIN, Stack
from overlapkit.config.emit.scope import Sections
from overlapkit.config.megatron_lm.flag_versions import versions_of
from overlapkit.config.megatron_lm.flags import FLAGS, LM
from overlapkit.config.provider_defaults import bridge_default
from overlapkit.config.run import Settings
from overlapkit.config.schema import section_fields

OTHER_NAMES = {"layernorm_epsilon": "norm_epsilon", "apply_rope_fusion": "rope_fusion"}
"""Keys of Megatron-Bridge that are flags of another name."""
FUSED = "model.bias_activation_fusion"
"""Megatron-LM has one switch of it for each activation, and it is on by default."""
SILU = "torch.nn.functional.silu"
"""The activation of --swiglu."""


class Apart(NamedTuple):
    """A switch with two defaults: its dotted key, Megatron-LM's default, and the flag against it.

    Megatron-Bridge's default is the opposite.
    """

    key: str
    megatron_lm: bool
    flag: str


def defaults_apart(stack: Stack, *, gated: bool) -> Iterator[Apart]:
    """The switches whose defaults differ.

    Args:
        stack: the versions.
        gated: whether the activation is --swiglu's, which has a fusion of its own.
    """
    version = stack.core or MAIN
    covered = {key for flag in FLAGS.values() for key in flag.keys if not key.startswith(LM)}
    for section in ("model", "ddp", "optimizer"):
        for key, field in section_fields(section, stack).items():
            dotted = f"{section}.{key}"
            if not field.kind.startswith("bool") or dotted in covered:
                continue
            name = OTHER_NAMES.get(key, key).replace("_", "-")
            on, off = (_is_switch(flag, version) for flag in (f"--{name}", f"--no-{name}"))
            bridge = bool(bridge_default(section, key, field.default))
            if on != off and bridge == on:
                yield Apart(dotted, off, f"--{name}" if on else f"--no-{name}")
    yield Apart(FUSED, True, f"--no-bias-{'swiglu' if gated else 'gelu'}-fusion")


def _is_switch(flag: str, version: str) -> bool:
    known = versions_of(flag)
    return known is not None and known.is_switch and known.versions.contains(version)


def with_megatron_lms(sections: Sections, settings: Settings) -> Sections:
    """The sections with what Megatron-LM chooses where no flag says otherwise."""
    model = sections.get("model") or {}
    gated = bool(model.get("gated_linear_unit"))
    result = dict(sections)
    for apart in defaults_apart(settings.stack, gated=gated):
        section, _, key = apart.key.partition(".")
        result[section] = {key: apart.megatron_lm, **(result.get(section) or {})}
    if gated and not model.get("activation_func"):
        result["model"] = {**(result.get("model") or {}), "activation_func": SILU}
    return result


def flags_against_defaults(settings: Settings) -> list[tuple[str, ...]]:
    """Flags for what Megatron-Bridge chooses where the settings say nothing."""
    model = settings.values.get("model") or {}
    given = settings.flat()
    return [
        (apart.flag,)
        for apart in defaults_apart(settings.stack, gated=bool(model.get("gated_linear_unit")))
        if given.get(apart.key, not apart.megatron_lm) is not apart.megatron_lm
    ]
