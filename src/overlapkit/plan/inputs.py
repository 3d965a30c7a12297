"""What is to be planned: a run's settings from whichever form they came in, defaults told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from overlapkit.config.overrides import is_override
from overlapkit.config.run import Settings
from overlapkit.config.schema import section_fields
from overlapkit.config.sources import (
    check_world_size,
    name_sources,
    read_document,
    world_size_of,
)
from overlapkit.config.text_file import exists
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.errors import InputError
from overlapkit.plan.models import named_model

SHORT = {
    "tp": "model.tensor_model_parallel_size",
    "pp": "model.pipeline_model_parallel_size",
    "vp": "model.virtual_pipeline_model_parallel_size",
    "cp": "model.context_parallel_size",
    "ep": "model.expert_model_parallel_size",
    "etp": "model.expert_tensor_parallel_size",
    "mbs": "train.micro_batch_size",
    "gbs": "train.global_batch_size",
    "seq": "model.seq_length",
    "precision": "mixed_precision",
}
"""Names that an override may have for short: ``tp=4``."""

LAYOUT = tuple(SHORT[name] for name in ("tp", "pp", "vp", "cp", "ep", "etp"))
"""The keys that are a layout; the micro-batch is chosen with them where none is given."""

PRECISIONS = {
    "bf16": "bf16_mixed",
    "fp16": "fp16_mixed",
    "fp8": "bf16_with_fp8_current_scaling_mixed",
    "fp8-cs": "bf16_with_fp8_current_scaling_mixed",
    "fp8-current": "bf16_with_fp8_current_scaling_mixed",
    "fp8-ds": "bf16_with_fp8_delayed_scaling_mixed",
    "fp8-delayed": "bf16_with_fp8_delayed_scaling_mixed",
    "fp8-sc": "bf16_with_fp8_subchannel_scaling_mixed",
    "fp8-blockwise": "bf16_with_fp8_subchannel_scaling_mixed",
    "fp8-mx": "bf16_with_mxfp8_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
    "nvfp4": "bf16_with_nvfp4_mixed",
}
"""Mixed-precision recipes by the names that benchmark tables and plans give them."""


def recipe_of(name: str) -> str | None:
    """The recipe that a table calls ``FP8-CS``, a plan ``fp8 current``; None where none is meant.

    A table's second precision, as in ``FP8-CS (FP8-MX)``, is that of a second number.
    """
    first = name.partition("(")[0]
    return PRECISIONS.get(re.sub(r"[\s_-]+", "-", first.strip().lower()))


LARGEST_NODE = 16
"""GPUs of the largest machine (HGX-2, A100 instances of 16)."""

STEP_TOKENS = 4 * 1024 * 1024
"""Tokens of a step where no batch is given: Llama 3's first (The Llama 3 Herd of Models, 2024,
section 3.4.1)."""


@dataclass(frozen=True)
class Inputs:
    """A run to plan.

    Attributes:
        settings: everything that was given, and the defaults in `assumed`.
        world_size: GPUs of the job.
        gpus_per_node: where --nodes tells; None leaves the NVLink domain to the GPU's reference
            system.
        layout_given: whether anything said how the model is divided.
        micro_batch_given: whether the micro-batch was.
        batch_given: whether the global batch was.
        assumed: what nobody gave and was filled in, as sentences.
        original: the settings as they were read; None for a published model, which has none.
    """

    settings: Settings
    world_size: int
    gpus_per_node: int | None
    layout_given: bool
    micro_batch_given: bool
    batch_given: bool
    assumed: tuple[str, ...]
    original: Settings | None


def read_inputs(
    arguments: Sequence[str],
    *,
    model: str | None = None,
    from_megatron_lm: bool = False,
    world_size: int | None = None,
    nodes: int | None = None,
    domain: int = 8,
) -> Inputs:
    """The run that the command's arguments describe.

    Args:
        arguments: a configuration's file, where one is given, and overrides.
        model: the name of a published model.
        from_megatron_lm: whether the file is a launch script of Megatron-LM, or its arguments stand
            among `arguments`.
        world_size: GPUs of the job; None takes whole nodes, or what a launch script tells.
        nodes: machines of the job; None does not tell.
        domain: GPUs in one NVLink domain of the GPU's reference system.

    Raises:
        InputError: not exactly one source, or any fault in it.
    """
    if from_megatron_lm:
        if model is not None:
            raise InputError(f"give --from-megatron-lm or --model {model}, not both")
        (source,) = name_sources(arguments, command="plan", from_megatron_lm=True, spell=_spelt_out)
        read = source.read()
        size, per_node = _world_size(read, world_size, nodes, domain)
        # Planned as Megatron-Bridge makes it effective; what is recommended is the same.
        settings, more = _as_bridge(read)
        notes = (*(read.launch.notes if read.launch is not None else ()), *more)
        return _filled_in(settings, read, size, per_node, notes)
    files = [text for text in arguments if not is_override(text)]
    if model is not None and files:
        given = " and ".join([*files, f"--model {model}"])
        raise InputError(f"plan takes one CONFIG, or --model NAME: {given}")
    if model is None and not arguments:
        raise InputError("plan takes one CONFIG, or --model NAME: none is given")
    if model is None:
        (source,) = name_sources(arguments, command="plan", spell=_spelt_out)
        _check_file(source.name)
        settings = _read(read_yaml(source.name), source.given)
        size, per_node = _world_size(settings, world_size, nodes, domain)
        return _filled_in(settings, settings, size, per_node, ())
    data = {"model": named_model(model), "ddp": {"use_distributed_optimizer": True}}
    overrides = [_spelt_out(text) for text in arguments]
    settings = _read(Document(f"--model {model}", data), overrides)
    size, per_node = _world_size(settings, world_size, nodes, domain)
    return _filled_in(settings, None, size, per_node, ())


def _check_file(name: str) -> None:
    if not exists(name) and re.fullmatch(r"[a-z]\w+_\w+", name.lower()):
        # Names a model where a file is meant, as everyone does once.
        try:
            named_model(name)
        except InputError:
            return
        raise InputError(f"{name}: no such file; for the published model write --model {name}")


def _spelt_out(text: str) -> str:
    """An override with its key and, for a precision, its value in full."""
    key, _, value = text.partition("=")
    if key in SHORT:
        key = SHORT[key]
    if key == "mixed_precision":
        given = value
        value = recipe_of(given) or given
        if not value.endswith("_mixed") and value not in ("null", ""):
            raise InputError(
                f"mixed_precision={given} is not a known recipe; for short there are "
                f"{', '.join(PRECISIONS)}, and each recipe's own name, such as bf16_mixed"
            )
    if key == SHORT["vp"] and value == "1":
        # Megatron-Core takes 1 for interleaving with one chunk; everyone means none.
        value = "null"
    return f"{key}={value}"


def _read(document: Document, overrides: Sequence[str]) -> Settings:
    fixes = any(text.startswith("comm_overlap.") for text in overrides)
    if fixes and document.data.get("comm_overlap") is None:
        # A key can be fixed without the section's required one, which the plan chooses.
        data = {**document.data, "comm_overlap": {"tp_comm_overlap": False}}
        document = replace(document, data=data)
    return read_document(document, overrides)


def _world_size(
    settings: Settings, given: int | None, nodes: int | None, domain: int
) -> tuple[int, int | None]:
    """GPUs of the job, and of each of its machines where --nodes states their number."""
    check_world_size(given)
    check_world_size(nodes, "--nodes")
    if nodes is None:
        return world_size_of(settings, given), None
    # A rack-wide NVLink domain is made of trays of 4 GPUs (GB200 NVL72).
    usual = 4 if domain > 8 else domain
    if given is None:
        return nodes * usual, usual
    if given % nodes:
        raise InputError(
            f"--world-size {given} cannot be divided over --nodes {nodes}; give a multiple of it"
        )
    if given // nodes > max(domain, LARGEST_NODE):
        raise InputError(
            f"--nodes {nodes} for --world-size {given} would be {given // nodes} GPUs in a "
            f"machine; with {domain} in each it takes --nodes {-(-given // domain)}"
        )
    return given, given // nodes


def _as_bridge(read: Settings) -> tuple[Settings, list[str]]:
    """Megatron-LM's settings as Megatron-Bridge's, and what of them Megatron-Bridge does not have.

    What Megatron-LM derives is spelt out. That sequence parallelism is off where no flag asks for
    it states nothing.
    """
    from overlapkit.config.emit.scope import for_bridge

    sections, left_out = for_bridge(read)
    model = sections.get("model") or {}
    if "model.sequence_parallel" not in read.asked and not model.get("sequence_parallel"):
        model.pop("sequence_parallel", None)
    derived = {f"{s}.{key}" for s, content in sections.items() for key in content or {}}
    settings = replace(
        read,
        values=sections,
        asked=read.asked | derived,
        framework="megatron-bridge",
        launch=None,
    )
    return settings, [f"{key} is not planned for: {why}" for key, why in left_out]


def _filled_in(
    settings: Settings,
    original: Settings | None,
    world_size: int,
    per_node: int | None,
    notes: Sequence[str],
) -> Inputs:
    flat = settings.flat()
    values = {s: dict(c) if isinstance(c, dict) else c for s, c in settings.values.items()}
    asked = set(settings.asked)
    assumed = list(notes)
    named = original is None
    layout_given = not named or any(key in settings.overridden for key in LAYOUT)
    micro_given = flat.get(SHORT["mbs"]) is not None
    batch_given = flat.get(SHORT["gbs"]) is not None

    def fill(section: str, key: str, value: Any, why: str) -> None:
        content = values.get(section)
        values[section] = {**(content or {}), key: value}
        asked.add(f"{section}.{key}")
        assumed.append(f"{section}.{key}={value} is assumed: {why}")

    states_precision = _states_precision(values.get("model") or {})
    of_megatron_lm = original is not None and original.framework == "megatron-lm"
    if "mixed_precision" not in values and not states_precision and not of_megatron_lm:
        fill("mixed_precision", "_recipe", "bf16_mixed", "no precision is given")
        assumed[-1] = "mixed_precision=bf16_mixed is assumed: no precision is given"
        asked.add("mixed_precision")
    if not micro_given:
        fill("train", "micro_batch_size", 1, "none is given")
    if not batch_given:
        batch, why = _global_batch(values, world_size)
        fill("train", "global_batch_size", batch, why)
    filled = replace(settings, values=values, asked=frozenset(asked))
    return Inputs(
        settings=filled,
        world_size=world_size,
        gpus_per_node=per_node,
        layout_given=layout_given,
        micro_batch_given=micro_given,
        batch_given=batch_given,
        assumed=tuple(assumed),
        original=original,
    )


def _states_precision(model: Mapping[str, Any]) -> bool:
    return any(model.get(key) for key in ("bf16", "fp16", "params_dtype", "fp8", "fp4"))


def _global_batch(values: Mapping[str, dict[str, Any] | None], world_size: int) -> tuple[int, str]:
    """A global batch of about `STEP_TOKENS` that every data-parallel size divides."""
    default = section_fields("model")["seq_length"].default
    sequence = (values.get("model") or {}).get("seq_length") or default or 1024
    micro = (values.get("train") or {}).get("micro_batch_size") or 1
    unit = world_size * micro
    batch = max(round(STEP_TOKENS / sequence / unit), 1) * unit
    return batch, f"about {STEP_TOKENS >> 20} Mi tokens a step, as Llama 3 began with"
