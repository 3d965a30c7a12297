"""What `emit` writes of a run's settings, and what it has to omit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from megatron.bridge.training.mixed_precision_recipes import mixed_precision_recipe
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.effective import EFFECTIVE_KNOBS, knob_value, make_effective
from overlapkit.config.overrides import BY_NAME
from overlapkit.config.provider_defaults import bridge_default
from overlapkit.config.run import Settings
from overlapkit.config.schema import KINDS, OWN_NAMES, section_fields

SECTIONS = (
    "model",
    "train",
    "tokenizer",
    "mixed_precision",
    "ddp",
    "optimizer",
    "comm_overlap",
    "env_vars",
)
"""The sections that decide about overlap, in the order in which they are written."""

_ENUMS = frozenset({"attention_backend"})
"""Fields whose values are members of an enum, which a file has by their number."""
PLAIN_OTHERS = frozenset(
    {
        "bucket_size",
        "cp_comm_type",
        "cuda_graph_scope",
        "hierarchical_context_parallel_sizes",
        "linear_attention_freq",
        "moe_aux_loss_coeff",
        "moe_layer_freq",
        "moe_router_load_balancing_type",
        "no_rope_freq",
        "offload_modules",
        "pipeline_model_parallel_layout",
        "recompute_modules",
        "tp_comm_overlap_cfg",
        "window_size",
    }
)
"""Fields without one simple kind whose values are nevertheless lists, names or numbers."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

Sections = dict[str, dict[str, Any] | None]


class LeftOut(NamedTuple):
    """A setting that a form cannot express, and why."""

    key: str
    why: str


class Emitted(NamedTuple):
    """A run's settings in one form, and what that form omits."""

    text: str
    left_out: list[LeftOut]


def sections_of(settings: Settings | Mapping[str, Any]) -> Sections:
    """The sections and keys that a run's overlap depends on, as requested.

    Keys that belong to no configuration class are omitted, and so are keys that only repeat a
    default in a file that Megatron-Bridge wrote.

    Args:
        settings: as read, or a mapping of section to its keys and values.
    """
    asked: frozenset[str] | None
    if isinstance(settings, Settings):
        values, asked = settings.values, settings.asked
    else:
        values, asked = dict(settings), None
    result: Sections = {}
    for section in SECTIONS:
        if section not in values:
            continue
        content = values[section]
        if isinstance(content, str):
            content = {BY_NAME: content}
        if content is None:
            result[section] = None
            continue
        own = content.keys() if section in OWN_NAMES else frozenset()
        known = section_fields(section).keys() | own | {BY_NAME}
        kept = {
            key: value
            for key, value in content.items()
            if key in known and (asked is None or f"{section}.{key}" in asked)
        }
        if kept or section in ("model", "ddp"):
            result[section] = kept
    return result


_OF_PRECISION = ("model", "ddp", "optimizer")
"""Sections with fields that mixed_precision is copied over."""


def _overwritten(section: str, key: str, settings: Settings) -> bool:
    """Whether mixed_precision overwrites a field that is no request of a person."""
    dotted = f"{section}.{key}"
    return (
        key in section_fields("mixed_precision")
        and dotted not in EFFECTIVE_KNOBS
        and dotted not in settings.overridden
    )


def every_section(settings: Settings) -> tuple[Sections, list[LeftOut]]:
    """All sections and keys of a run, with those that do not matter to overlap, as requested.

    Of a file that Megatron-Bridge wrote, an object of a key that no version is known to have is
    omitted: its class was not kept. So is a field that mixed_precision overwrites: the file has it
    because it has every field, and written out it would be a request.
    """
    chosen = sections_of(settings)
    dumped = settings.is_dump
    if dumped and settings.values.get("mixed_precision") is not None:
        chosen = {
            section: {
                key: value
                for key, value in (content or {}).items()
                if not _overwritten(section, key, settings)
            }
            if section in _OF_PRECISION
            else content
            for section, content in chosen.items()
        }
    left_out: list[LeftOut] = []
    result: Sections = {}
    for section in (*SECTIONS, *(s for s in settings.values if s not in SECTIONS)):
        if section not in settings.values:
            continue
        content = settings.values[section]
        kept = dict(chosen.get(section) or {})
        for key, value in (content or {}).items():
            dotted = f"{section}.{key}"
            if key in kept or dotted not in settings.asked or key in section_fields(section):
                continue
            if dumped and isinstance(value, dict):
                left_out.append(LeftOut(dotted, "an object whose class was not kept"))
            elif value is not None or not dumped:
                kept[key] = value
        if content is None or kept or section in chosen:
            result[section] = None if content is None else kept
    return result, left_out


def for_bridge(settings: Settings) -> tuple[Sections, list[LeftOut]]:
    """A Megatron-LM run's settings for Megatron-Bridge, which derives nothing without comm_overlap.

    What Megatron-LM derives is written out.
    """
    model = settings.values.get("model") or {}
    ranks = prod(
        model.get(f"{name}_size") or 1
        for name in (
            "tensor_model_parallel",
            "pipeline_model_parallel",
            "context_parallel",
            "expert_model_parallel",
        )
    )
    run, _ = make_effective(settings, 2 * ranks, AssumedSoftware())
    sections: Sections = {}
    for section in SECTIONS:
        content = settings.values.get(section)
        if content is not None:
            sections[section] = dict(content)
    for knob in EFFECTIVE_KNOBS:
        section, _, key = knob.partition(".")
        value = knob_value(run, knob)
        known = section_fields(section).get(key)
        written = sections.setdefault(section, {})
        if written is None or known is None:
            continue
        if key in written or value != bridge_default(section, key, known.default):
            written[key] = value
    left_out = [
        LeftOut(f"{LM}.{key}", why)
        for key, why in _ONLY_MEGATRON_LM.items()
        if (settings.values.get(LM) or {}).get(key)
    ]
    return sections, left_out


LM = "megatron_lm"
_ONLY_MEGATRON_LM = {
    "use_torch_fsdp2": "Megatron-Bridge has no torch FSDP2; Megatron FSDP is ddp.use_megatron_fsdp",
    "ckpt_format": "in Megatron-Bridge the checkpoint's format is checkpoint.ckpt_format",
}


def recipe_in_full(content: Mapping[str, Any]) -> dict[str, Any]:
    """mixed_precision as keys only, where it was a recipe's name and further keys."""
    if BY_NAME not in content:
        return dict(content)
    given = {key: value for key, value in content.items() if key != BY_NAME}
    return mixed_precision_recipe(content[BY_NAME]) | given


def is_name_of_object(section: str, key: str, value: Any) -> bool:
    """Whether a text is the dotted name of a function or dtype, such as torch.bfloat16."""
    return (
        isinstance(value, str)
        and not is_plain_key(section, key)
        and _DOTTED.fullmatch(value) is not None
    )


def is_plain_key(section: str, key: str) -> bool:
    """Whether a key's values are numbers, names, switches, or lists and mappings of them."""
    known = section_fields(section).get(key)
    kind = known.kind.partition("|")[0] if known is not None else "str"
    return kind in KINDS or key in PLAIN_OTHERS


def is_unwritable(section: str, key: str, value: Any) -> bool:
    """Whether the value is an object that cannot be written as it was."""
    if is_plain_key(section, key) or value is None or isinstance(value, str):
        return False
    if isinstance(value, list):
        return any(not isinstance(each, (str, int, float)) for each in value)
    # Of many fields only the name is known; a number stands for an enum's member in these alone.
    return not isinstance(value, (int, float)) or key in _ENUMS


def objects_left_out(sections: Sections) -> tuple[Sections, list[LeftOut]]:
    """The sections without values that are objects, and the omitted values."""
    left_out = []
    kept: Sections = {}
    for section, content in sections.items():
        if content is None:
            kept[section] = None
            continue
        written = kept[section] = {}
        for key, value in content.items():
            if is_unwritable(section, key, value):
                why = f"it is an object, and only {str(value)[:40]!r} of it was read"
                left_out.append(LeftOut(f"{section}.{key}", why))
            else:
                written[key] = value
    return kept, left_out


def environment_lines(environment: Mapping[str, str], intro: str) -> list[str]:
    """The launch environment as comment lines; empty where there is nothing to set."""
    if not environment:
        return []
    return [f"# {intro}", *(f"#   export {name}={value}" for name, value in environment.items())]
