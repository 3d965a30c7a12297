"""A run's settings as Python for Megatron-Bridge, ready to run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.tp_overlap_presets import PRESETS
from megatron.bridge.training.userbuffers.settings import (
    BulkOverlapCfg,
    PipelineOverlapCfg,
    RingExchangeOverlapCfg,
    TransformerLayerTPOverlapCfg,
    as_te_dict,
)
from overlapkit.config.emit.scope import (
    Emitted,
    LeftOut,
    Sections,
    environment_lines,
    is_name_of_object,
    is_plain_key,
    objects_left_out,
    recipe_in_full,
)
from overlapkit.config.overrides import BY_NAME
from overlapkit.config.schema import KINDS, OWN_NAMES, core_table, section_fields

_INTRO = "The job's environment, set before its processes start, or (since 0.6.0) in env_vars:"
_CLASSES = {
    "model": "GPTModelProvider",
    "train": "TrainingConfig",
    "mixed_precision": "MixedPrecisionConfig",
    "ddp": "DistributedDataParallelConfig",
    "optimizer": "OptimizerConfig",
    "comm_overlap": "CommOverlapConfig",
}
_IMPORTS = {
    "megatron.bridge.models": ("GPTModelProvider",),
    "megatron.bridge.training.comm_overlap": (
        "BulkOverlapCfg",
        "CommOverlapConfig",
        "PipelineOverlapCfg",
        "RingExchangeOverlapCfg",
        "TransformerLayerTPOverlapCfg",
        *PRESETS,
    ),
    "megatron.bridge.training.config": (
        "ConfigContainer",
        "DistributedDataParallelConfig",
        "OptimizerConfig",
        "TrainingConfig",
    ),
    "megatron.bridge.training.mixed_precision": ("MixedPrecisionConfig",),
}
_USERBUFFERS = {
    "ring_exchange": RingExchangeOverlapCfg,
    "pipeline": PipelineOverlapCfg,
    "bulk": BulkOverlapCfg,
}
_DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "uint8", "int16")
_IMPORTED = re.compile(r"(torch|megatron\.core(\.[A-Za-z]\w*)+)(\.[A-Za-z]\w*)+")
"""Functions whose module can be imported by name."""
_PUBLIC_NAMES = {"torch._C._nn.gelu": "torch.nn.functional.gelu"}
_OWN_DEFAULTS = {
    "model.transformer_layer_spec": "megatron.bridge.models.gpt_provider.default_layer_spec"
}
_INDENT = "    "


def emit_bridge(sections: Sections, environment: Mapping[str, str]) -> Emitted:
    """The part of a script that builds a run's `ConfigContainer`, as `cfg`."""
    sections, left_out = objects_left_out(sections)
    sections = _with_vocabulary(sections)
    arguments: list[str] = []
    for section, content in sections.items():
        if section in OWN_NAMES and content:
            pairs = [f"{_INDENT * 2}{_literal(k)}: {_literal(v)}," for k, v in content.items()]
            arguments += [f"{_INDENT}{section}={{", *pairs, f"{_INDENT}}},"]
        if section not in _CLASSES:
            continue
        if content is None or content.keys() == {BY_NAME}:
            value = _literal(content[BY_NAME]) if content else "None"
            arguments.append(f"{_INDENT}{section}={value},")
            continue
        taken, refused = _keywords(section, content)
        left_out += refused
        body = [f"{_INDENT * 2}{name}={value}," for name, value in taken.items()]
        head = f"{_INDENT}{section}={_CLASSES[section]}("
        arguments += [head, *body, f"{_INDENT}),"] if body else [f"{head}),"]
    if not any(line.startswith(f"{_INDENT}model=") for line in arguments):
        arguments.insert(0, f"{_INDENT}model=GPTModelProvider(),")
    body_text = "\n".join(["cfg = ConfigContainer(", *arguments, ")"])
    text = "\n".join(
        [*environment_lines(environment, _INTRO), *_imports(body_text), "", body_text, ""]
    )
    return Emitted(text, left_out)


def _imports(body: str) -> list[str]:
    used = set(re.findall(r"\w+", body))
    objects = re.findall(r"=((?:torch|megatron)\.[\w.]+),$", body, re.MULTILINE)
    modules = {n.rpartition(".")[0] if n.startswith("megatron") else "torch" for n in objects}
    lines = [*(f"import {module}" for module in sorted(modules)), *([""] if modules else [])]
    for module, names in _IMPORTS.items():
        wanted = sorted(set(names) & used)
        if wanted:
            one = f"from {module} import {', '.join(wanted)}"
            several = [f"{_INDENT}{name}," for name in wanted]
            lines += [one] if len(one) <= 100 else [f"from {module} import (", *several, ")"]
    return lines


def _with_vocabulary(sections: Sections) -> Sections:
    """The tokenizer's vocabulary size on the model, where Megatron-Bridge puts it at build time."""
    vocabulary = (sections.get("tokenizer") or {}).get("vocab_size")
    model = sections.get("model") or {}
    if vocabulary is None or model.get("vocab_size") is not None:
        return sections
    return {**sections, "model": {**model, "vocab_size": vocabulary, "should_pad_vocab": True}}


def _keywords(section: str, content: Mapping[str, Any]) -> tuple[dict[str, str], list[LeftOut]]:
    """Keyword arguments of a section's class, as Python text, and keys that it does not take."""
    taken: dict[str, str] = {}
    refused: list[LeftOut] = []
    fields = _fields_of(section)
    for key, value in recipe_in_full(content).items():
        dotted = f"{section}.{key}"
        known = section_fields(section).get(key)
        if known is not None and value is None and known.kind in KINDS:
            # null for a plain number or switch means "not set".
            continue
        if value is not None and _OWN_DEFAULTS.get(dotted) == value:
            continue
        if key not in fields:
            refused.append(LeftOut(dotted, f"{_CLASSES[section]} has no such field"))
            continue
        text = _value(section, key, value)
        if text is None:
            refused.append(LeftOut(dotted, f"{str(value)[:60]!r} is the name of another object"))
        else:
            taken[key] = text
    return taken, refused


def _fields_of(section: str) -> frozenset[str]:
    table = core_table()
    if section == "model":
        return frozenset(table.model) | frozenset(table.provider)
    if section == "comm_overlap":
        return frozenset(f.name for f in dataclasses.fields(CommOverlapConfig))
    if section == "mixed_precision":
        return frozenset(f.name for f in dataclasses.fields(MixedPrecisionConfig))
    return frozenset(section_fields(section))


def _value(section: str, key: str, value: Any) -> str | None:
    if key == "tp_comm_overlap_cfg" and section == "comm_overlap":
        return _userbuffers(value)
    if isinstance(value, str) and key.endswith("dtype") and not is_plain_key(section, key):
        name = value.rpartition(".")[2]
        return f"torch.{name}" if name in _DTYPES else None
    if is_name_of_object(section, key, value):
        name = _PUBLIC_NAMES.get(value, value)
        return name if _IMPORTED.fullmatch(name) and "._" not in name else None
    return _literal(value)


def _literal(value: Any) -> str:
    """A plain value as Python text, with plain names in double quotes, as formatters do."""
    if isinstance(value, str) and re.fullmatch(r"[\w.,:|*()/+ -]*", value, re.ASCII):
        return f'"{value}"'
    return repr(value)


def _userbuffers(value: Any) -> str | None:
    """A userbuffers configuration as its preset's name, or as the classes' calls."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return value.rpartition(".")[2]
    gemms = []
    slots = [f.name for f in dataclasses.fields(TransformerLayerTPOverlapCfg)]
    plain = as_te_dict(value)
    if not plain.keys() <= set(slots):
        return repr(plain)
    for gemm in slots:
        settings = plain.get(gemm)
        if settings is None:
            gemms.append(f"{_INDENT * 3}{gemm}=None,")
            continue
        cls = _USERBUFFERS.get(str(settings.get("method")))
        if cls is None:
            return repr(plain)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        needed = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
        if not settings.keys() <= fields.keys() or not needed <= settings.keys():
            return repr(plain)
        # The class would add its own defaults, which the mapping does not have.
        if any(n not in settings for n in fields):
            return repr(plain)
        given = ", ".join(
            f"{n}={_literal(v)}" for n, v in settings.items() if fields[n].default != v
        )
        gemms.append(f"{_INDENT * 3}{gemm}={cls.__name__}({given}),")
    return "\n".join(["TransformerLayerTPOverlapCfg(", *gemms, f"{_INDENT * 2})"])
