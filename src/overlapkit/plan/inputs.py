"""The run to plan: its settings in whichever form they are given, and the defaults assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.rules.context import fsdp_switch
from overlapkit.config.overrides import is_override
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings, build_run
from overlapkit.config.schema import section_fields
from overlapkit.config.sources import (
    check_world_size,
    document_of,
    name_sources,
    read_document,
    world_size_of,
)
from overlapkit.config.text_file import exists
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError
from overlapkit.plan.models import named_model
from overlapkit.plan.network import gpus_of_node
from overlapkit.plan.search.candidates import DISPATCHER

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
"""Short names of keys in overrides: ``tp=4``."""

LAYOUT = tuple(SHORT[name] for name in ("tp", "pp", "vp", "cp", "ep"))
"""The keys of a layout. The micro-batch is chosen with them where none is given; how an expert is
divided belongs to the model."""

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
"""Mixed-precision recipes by the names that benchmark tables and plans use."""


def recipe_of(name: str) -> str | None:
    """The recipe that a table calls ``FP8-CS`` and a plan ``fp8 current``; None if unknown.

    A second precision, as in ``FP8-CS (FP8-MX)``, belongs to a table's second number: it is
    ignored.
    """
    first = name.partition("(")[0]
    return PRECISIONS.get(re.sub(r"[\s_-]+", "-", first.strip().lower()))


LARGEST_NODE = 16
"""GPUs of the largest machine (HGX-2, A100 instances of 16)."""

STEP_TOKENS = 4 * 1024 * 1024
"""Tokens of a step where no batch is given, as Llama 3 405B started with (The Llama 3 Herd of
Models, 2024, section 3.4.1)."""


@dataclass(frozen=True)
class Inputs:
    """A run to plan.

    Attributes:
        settings: everything that is given, and the defaults in `assumed`.
        world_size: GPUs of the job.
        gpus_per_node: from --nodes; None takes the NVLink domain of the GPU's reference system.
        layout_given: whether the input says how the model is divided.
        micro_batch_given: whether it sets the micro-batch.
        assumed: what is not given and was filled in, as sentences.
        original: the settings as they were read; None for a published model, which has none.
        read: the settings before anything was assumed: `original` as Megatron-Bridge's settings, or
            the published model.
    """

    settings: Settings
    world_size: int
    gpus_per_node: int | None
    layout_given: bool
    micro_batch_given: bool
    assumed: tuple[str, ...]
    original: Settings | None
    read: Settings


def read_inputs(
    arguments: Sequence[str],
    *,
    document: Document | None = None,
    model: str | None = None,
    from_megatron_lm: bool = False,
    world_size: int | None = None,
    nodes: int | None = None,
    domain: int = 8,
    reading: Reading | None = None,
) -> Inputs:
    """The run that the command's arguments describe.

    Args:
        arguments: a configuration's file, where one is given, and overrides.
        document: settings that were read already, instead of a file.
        model: the name of a published model.
        from_megatron_lm: whether the file is a launch script of Megatron-LM, or Megatron-LM's
            arguments are among `arguments`.
        world_size: GPUs of the job; None takes full nodes, or what a launch script states.
        nodes: machines of the job; None if not given.
        domain: GPUs in one NVLink domain of the GPU's reference system.
        reading: for which versions and how strictly the configuration is read.

    Raises:
        InputError: not exactly one source, or any error in it.
    """
    if from_megatron_lm:
        if model is not None:
            raise InputError(f"give --from-megatron-lm or --model {model}, not both")
        (source,) = name_sources(arguments, command="plan", from_megatron_lm=True, spell=_spelt_out)
        return _of_megatron_lm(source.read(reading), world_size, nodes, domain)
    if document is not None:
        if model is not None:
            raise InputError(f"plan takes one CONFIG, or --model NAME: both are given ({model})")
        settings = _read(document, [_spelt_out(text) for text in arguments], reading)
        size, per_node = _world_size(settings, world_size, nodes, domain)
        return _filled_in(settings, settings, size, per_node, ())
    files = [text for text in arguments if not is_override(text)]
    if model is not None and files:
        given = " and ".join([*files, f"--model {model}"])
        raise InputError(f"plan takes one CONFIG, or --model NAME: {given}")
    if model is None and not arguments:
        raise InputError("plan takes one CONFIG, or --model NAME: none is given")
    if model is None:
        (source,) = name_sources(arguments, command="plan", spell=_spelt_out)
        if source.kind == "script":
            return _of_megatron_lm(source.read(reading), world_size, nodes, domain)
        _check_file(source.name)
        settings = _read(document_of(source.name), source.given, reading)
        size, per_node = _world_size(settings, world_size, nodes, domain)
        return _filled_in(settings, settings, size, per_node, ())
    data = {"model": named_model(model), "ddp": {"use_distributed_optimizer": True}}
    overrides = [_spelt_out(text) for text in arguments]
    settings = _read(Document(f"--model {model}", data), overrides, reading)
    size, per_node = _world_size(settings, world_size, nodes, domain)
    return _filled_in(settings, None, size, per_node, ())


def _of_megatron_lm(
    read: Settings, world_size: int | None, nodes: int | None, domain: int
) -> Inputs:
    size, per_node = _world_size(read, world_size, nodes, domain)
    # Megatron-Bridge's rules are applied; what is recommended is the same.
    settings, more = _as_bridge(read) if read.framework == "megatron-lm" else (read, [])
    settings = replace(settings, launch=None)
    notes = (*(read.launch.notes if read.launch is not None else ()), *more)
    return _filled_in(settings, read, size, per_node, notes)


def _check_file(name: str) -> None:
    if not exists(name) and re.fullmatch(r"[a-z]\w+_\w+", name.lower()):
        # The name of a model in place of a file: an easy mistake.
        try:
            named_model(name)
        except InputError:
            return
        raise InputError(f"{name}: no such file; for the published model write --model {name}")


def _spelt_out(text: str) -> str:
    """An override with its key, and a precision, in full."""
    key, _, value = text.partition("=")
    if key in SHORT:
        key = SHORT[key]
    if key == "mixed_precision":
        given = value
        value = recipe_of(given) or given
        if not value.endswith("_mixed") and value not in ("null", ""):
            raise InputError(
                f"mixed_precision={given} is not a known recipe; give one of "
                f"{', '.join(PRECISIONS)}, or the full name of a recipe, such as bf16_mixed"
            )
    if key == SHORT["vp"] and value == "1":
        # Megatron-Core reads 1 as interleaving with one chunk; the user means no interleaving.
        value = "null"
    return f"{key}={value}"


def _read(document: Document, overrides: Sequence[str], reading: Reading | None) -> Settings:
    fixes = any(text.startswith("comm_overlap.") for text in overrides)
    if fixes and document.data.get("comm_overlap") is None:
        # The section has one required key, which the plan chooses: the user need not give it.
        data = {**document.data, "comm_overlap": {"tp_comm_overlap": False}}
        document = replace(document, data=data)
    return read_document(document, overrides, reading)


def _world_size(
    settings: Settings, given: int | None, nodes: int | None, domain: int
) -> tuple[int, int | None]:
    """GPUs of the job, and of each of its machines where --nodes states their number."""
    check_world_size(given)
    check_world_size(nodes, "--nodes")
    if nodes is None:
        return world_size_of(settings, given), None
    usual = gpus_of_node(domain, None)
    if given is None:
        return nodes * usual, usual
    if given % nodes:
        raise InputError(
            f"--world-size {given} is not divisible by --nodes {nodes}; give a multiple of {nodes}"
        )
    if given // nodes > max(domain, LARGEST_NODE):
        raise InputError(
            f"--nodes {nodes} for --world-size {given} would be {given // nodes} GPUs per node; "
            f"with {domain} per node, use --nodes {-(-given // domain)}"
        )
    return given, given // nodes


def _as_bridge(read: Settings) -> tuple[Settings, list[str]]:
    """Megatron-LM's settings as Megatron-Bridge's, and a note for each that Bridge does not have.

    What Megatron-LM derives is written out. Sequence parallelism that no flag turns on counts as
    not set rather than as refused.
    """
    from overlapkit.config.emit.scope import for_bridge

    sections, omitted = for_bridge(read)
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
    return settings, [f"{key} is not planned for: {why}" for key, why in omitted]


def _filled_in(
    settings: Settings,
    original: Settings | None,
    world_size: int,
    per_node: int | None,
    notes: Sequence[str],
) -> Inputs:
    flat = settings.flat()
    values = {s: dict(c) if isinstance(c, dict) else c for s, c in settings.values.items()}
    requested = set(settings.asked)
    assumed = list(notes)
    layout_given = _states_layout(settings, original)
    micro_given = flat.get(SHORT["mbs"]) is not None

    def fill(section: str, key: str, value: Any, why: str) -> None:
        content = values.get(section)
        values[section] = {**(content or {}), key: value}
        requested.add(f"{section}.{key}")
        assumed.append(f"{section}.{key}={value} is assumed: {why}")

    states_precision = _states_precision(values.get("model") or {})
    of_megatron_lm = original is not None and original.framework == "megatron-lm"
    if "mixed_precision" not in values and not states_precision and not of_megatron_lm:
        fill("mixed_precision", "_recipe", "bf16_mixed", "no precision is given")
        assumed[-1] = "mixed_precision=bf16_mixed is assumed: no precision is given"
        requested.add("mixed_precision")
    if not micro_given:
        fill("train", "micro_batch_size", 1, "none is given")
    model = values.get("model") or {}
    if model.get("num_moe_experts") and model.get(DISPATCHER) is None and not of_megatron_lm:
        fill("model", DISPATCHER, "alltoall", "none is given, and all-gathers send every token")
    if flat.get(SHORT["gbs"]) is None:
        batch, why = _global_batch(values, world_size)
        fill("train", "global_batch_size", batch, why)
    filled = replace(settings, values=values, asked=frozenset(requested))
    return Inputs(
        settings=filled,
        world_size=world_size,
        gpus_per_node=per_node,
        layout_given=layout_given,
        micro_batch_given=micro_given,
        assumed=tuple(assumed),
        original=original,
        read=settings,
    )


def _states_layout(settings: Settings, original: Settings | None) -> bool:
    """Whether the input says how the model is divided.

    A launch script and a file that Megatron-Bridge wrote are complete: what they do not set has its
    default. Adapters and FSDP are not compared with other layouts.
    """
    if original is None:
        return any(key in settings.overridden for key in LAYOUT)
    complete = original.is_dump or original.launch is not None
    run = build_run(settings)
    return (
        complete
        or original.framework == "megatron-lm"
        or any(key in settings.asked for key in LAYOUT)
        or settings.values.get("peft") is not None
        or fsdp_switch(run.ddp, run.dist) is not None
    )


def _states_precision(model: Mapping[str, Any]) -> bool:
    return any(model.get(key) for key in ("bf16", "fp16", "params_dtype", "fp8", "fp4"))


def _global_batch(values: Mapping[str, dict[str, Any] | None], world_size: int) -> tuple[int, str]:
    """A global batch of about `STEP_TOKENS` that every data-parallel size divides, and why."""
    default = section_fields("model")["seq_length"].default
    sequence = (values.get("model") or {}).get("seq_length") or default or 1024
    micro = (values.get("train") or {}).get("micro_batch_size") or 1
    unit = world_size * micro
    batch = max(round(STEP_TOKENS / sequence / unit), 1) * unit
    return batch, f"about {STEP_TOKENS >> 20} Mi tokens per step, as Llama 3 started with"
