"""Facts for the templates, from the rules, the presets and the configuration classes."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron.bridge.recipes.launch_env import NOT_ADVISED
from megatron.bridge.recipes.launch_queues import PERF_ENV_PLUGIN, max_connections
from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.training import bucket_size
from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import RULES, Rule
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.mixed_precision_recipes import RECIPES
from megatron.bridge.training.tp_overlap_presets import PRESETS, PresetKey, parse_preset_name
from megatron.bridge.training.versions import NEWEST
from overlapkit.config.effective import EFFECTIVE_KNOBS
from overlapkit.config.schema import core_table
from overlapkit.doctor.finding import KINDS
from overlapkit.errors import InputError
from overlapkit.explain.document import source_of
from overlapkit.explain.rules.list import all_rules
from overlapkit.explain.rules.text import versions_text
from overlapkit.hardware import gpus


def rule(rule_id: str) -> Rule:
    """A declared rule.

    Raises:
        InputError: there is none of that id.
    """
    if rule_id not in RULES:
        raise InputError(f"rule({rule_id!r}): no such rule; known are {', '.join(sorted(RULES))}")
    return RULES[rule_id]


def rules_of(dimension: str) -> list[Rule]:
    """Every rule of a dimension, by file and line.

    Raises:
        InputError: the dimension has none.
    """
    found = [r for r in all_rules() if r.dimension == dimension]
    if not found:
        raise InputError(f"rules_of({dimension!r}): no rule has this dimension")
    return found


def place(rule_id: str) -> str:
    """File and line of a rule's declaration."""
    return ":".join(map(str, source_of(rule(rule_id).id)))


def knobs() -> list[dict[str, Any]]:
    """The fields of CommOverlapConfig: name, type and default."""
    return [
        {
            "name": f.name,
            "type": str(f.type).replace(" | None", ""),
            "default": "required" if f.default is dataclasses.MISSING else f.default,
        }
        for f in dataclasses.fields(CommOverlapConfig)
    ]


def presets() -> list[tuple[str, PresetKey]]:
    """Every userbuffers preset by name, with what its name says."""
    return [(name, parse_preset_name(name)) for name in PRESETS]


def queues() -> list[dict[str, Any]]:
    """CUDA_DEVICE_MAX_CONNECTIONS for the layouts that differ, by the launch rules themselves.

    Each layout has the number of either generation before Megatron-Bridge 0.6.0 and since.
    """
    split = LaunchSettings(False, tp_size=2, num_gpus=8)
    overlapped = dataclasses.replace(split, a2a_overlap=True)
    layouts = {
        "TP = CP = 1": LaunchSettings(False),
        "TP = CP = 1, DeepEP or HybridEP": LaunchSettings(
            False, moe_flex_dispatcher_backend="deepep"
        ),
        "TP or CP > 1": split,
        "TP or CP > 1, expert all-to-all overlapped": overlapped,
        "the same with DeepEP": dataclasses.replace(
            overlapped, moe_flex_dispatcher_backend="deepep"
        ),
        "the same with HybridEP": dataclasses.replace(
            overlapped, moe_flex_dispatcher_backend="hybridep"
        ),
        "TP or CP > 1, FSDP": dataclasses.replace(split, fsdp=True),
    }
    return [
        {"layout": name}
        | {
            f"{generation}_{when}": max_connections(
                dataclasses.replace(layout, gpu_sm100_or_newer=generation == "blackwell"), stack
            )[0]
            for generation in ("hopper", "blackwell")
            for when, stack in (("before", PERF_ENV_PLUGIN), ("since", NEWEST))
        }
        for name, layout in layouts.items()
    ]


def facts() -> dict[str, Any]:
    """Everything that a template can name."""
    # Imported here: they bring numpy, which no other part of the skill needs.
    from overlapkit.lab.scenarios import SCENARIOS
    from overlapkit.trace.diagnose.diagnosis import DIAGNOSES

    return {
        "rule": rule,
        "rules_of": rules_of,
        "place": place,
        "versions_text": versions_text,
        "knobs": knobs(),
        "presets": presets(),
        "queues": queues(),
        "not_advised": [f"`{name}` ({why})" for name, why in NOT_ADVISED.items()],
        "gpus": gpus(),
        "bucket": bucket_size,
        "precision_recipes": list(RECIPES),
        "precision_default": {f.name: f.default for f in dataclasses.fields(MixedPrecisionConfig)},
        "doctor_kinds": KINDS,
        "effective_knobs": ", ".join(f"`{knob}`" for knob in EFFECTIVE_KNOBS),
        "lab_scenarios": [(s.name, s.title) for s in SCENARIOS.values()],
        "diagnoses": DIAGNOSES,
        "core_source": core_table().source.partition(":")[0],
    }
