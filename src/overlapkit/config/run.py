"""From a file and overrides to the run that they describe, with defaults filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import SimpleNamespace
from typing import Any, Literal

from megatron.bridge.training.bucket_size import AUTO, LEAST_BUCKET_SIZE, is_bucket_size
from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig, mixed_precision_recipe
from megatron.bridge.training.near_names import nearest
from megatron.bridge.training.tp_overlap_presets import PRESETS
from megatron.bridge.training.versions import NEWEST, Stack
from overlapkit.config.overrides import BY_NAME, NAMED_SECTIONS, Override, apply_overrides
from overlapkit.config.schema import (
    KINDS,
    KNOB_SECTIONS,
    check_kind,
    check_unknown_key,
    core_table,
    known_keys,
    section_fields,
    sections,
    shown,
)
from overlapkit.config.versions import stacks_of_dump
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError

_SIZES = {
    "model": (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "context_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "num_moe_experts",
        "vocab_size",
        "seq_length",
    ),
    "ddp": ("num_distributed_optimizer_instances",),
    "train": ("micro_batch_size", "global_batch_size"),
    "tokenizer": ("vocab_size",),
}
_MAY_BE_ZERO = frozenset({"num_layers", "hidden_size", "num_attention_heads"})
"""Megatron-Core's own defaults, which mean "not set"."""


LARGEST = 2**31 - 1
"""Largest size: beyond any model or cluster."""

_COUNTED = {
    ("num_layers",): 10_000,
    ("num_layers", "num_moe_experts"): 200_000,
    ("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"): 20_000,
}
"""Largest products of sizes: buckets are counted by looking at each layer, expert and chunk. The
largest published models are below a third of each limit."""


Framework = Literal["megatron-bridge", "megatron-lm"]
"""The framework whose rules make the settings effective."""


@dataclass(frozen=True)
class Launch:
    """What a launch script says besides a run's settings.

    Attributes:
        environment: variables that it exports to the job.
        source: the script; None where only the arguments were given.
        world_size: GPUs that it starts the job on; None where that is not known.
        world_size_unknown: why that is not known, and how to give it.
        notes: what was assumed in reading it, and what the settings do not show.
    """

    environment: dict[str, str]
    source: str | None = None
    world_size: int | None = None
    world_size_unknown: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """A run's settings as written: checked, with nothing filled in.

    Attributes:
        source: the file, as the user named it.
        values: section to its keys and values, enums and dtypes as plain names; a section that
            is null or absent is None.
        asked: dotted keys that count as requested: all keys of a file that a user wrote, and every
            override. A file that Megatron-Bridge wrote has every field; of those, the keys that
            differ from Megatron-Core's default.
        where: dotted key to ``file:line``, or to the override that set it.
        overridden: dotted keys that an override set.
        framework: whose defaults and checks apply to them.
        launch: what the launch script says; None for a file of settings.
        stacks: the versions that the settings may be for, oldest first: those whose fields a file
            that Megatron-Bridge wrote has, or the one that the user gave; empty where they are not
            known.
        stack_given: whether the user gave it.
    """

    source: str
    values: dict[str, dict[str, Any] | None]
    asked: frozenset[str]
    where: dict[str, str] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    framework: Framework = "megatron-bridge"
    launch: Launch | None = None
    stacks: tuple[Stack, ...] = ()
    stack_given: bool = False

    @property
    def stack(self) -> Stack:
        """The newest stack that the settings may be for; the newest known where none is known."""
        return self.stacks[-1] if self.stacks else NEWEST

    def flat(self) -> dict[str, Any]:
        """Dotted key to value; a section that is null is its bare name with None."""
        result: dict[str, Any] = {}
        for section, content in self.values.items():
            if content is None:
                result[section] = None
            else:
                result.update(
                    {
                        section if key == BY_NAME else f"{section}.{key}": value
                        for key, value in content.items()
                    }
                )
        return result


@dataclass
class Run:
    """The configurations of a run, with every field that the rules may read."""

    model: Any
    optimizer: Any
    ddp: Any
    train: Any
    mixed_precision: MixedPrecisionConfig | None
    comm_overlap: CommOverlapConfig | None
    dist: Any = None
    env_vars: dict[str, Any] | None = None


def read_settings(document: Document, overrides: Iterable[Override] = ()) -> Settings:
    """The checked settings in a file, with overrides applied.

    Raises:
        InputError: a key, kind or size that no run can have; a misspelt or misplaced knob.
    """
    overrides = list(overrides)
    dumped = "_target_" in document.data
    data = {
        section: _plain(content)
        for section, content in document.data.items()
        if not section.startswith("_")
    }
    for section in NAMED_SECTIONS:
        if isinstance(data.get(section), dict):
            data[section].pop(BY_NAME, None)
    _check_sections(document, data)
    nested = _flatten_model(document, data)
    stacks = stacks_of_dump(data) if dumped else ()
    overrides = [_unnested(o) for o in overrides] if nested else overrides
    values = apply_overrides(data, [_plain_override(o) for o in overrides])
    for section in NAMED_SECTIONS:
        if isinstance(values.get(section), str):
            values[section] = {BY_NAME: values[section]}

    where = {".".join(keys): document.where(*keys) for keys in document.lines if 0 < len(keys) <= 2}
    where |= {f"model.{key}": document.where("model", TRANSFORMER, key) for key in nested}
    overridden = dict(_overridden(overrides))
    where |= overridden
    for section, content in values.items():
        if section in sections() and content is not None and not isinstance(content, dict):
            place = where.get(section, document.path)
            raise InputError(
                f"{place}: {section} must be a section with keys, not {shown(content)}"
            )
    settings = {s: c for s, c in values.items() if isinstance(c, dict) or c is None}
    for section, content in settings.items():
        for key, value in (content or {}).items():
            place = where.get(f"{section}.{key}", document.path)
            check_kind(section, key, value, place)
            if key not in known_keys(section) and not dumped:
                check_unknown_key(section, key, place)
    _check_sizes(settings, where, document.path)
    asked = frozenset(
        dotted
        for section, content in settings.items()
        for key, value in (content or {}).items()
        if (dotted := f"{section}.{key}") in overridden
        or not (dumped and _is_default(section, key, value, stacks))
    )
    return Settings(
        document.path, settings, asked, where, frozenset(overridden), stacks=tuple(stacks)
    )


TRANSFORMER = "transformer"
"""The section of a model, since Megatron-Bridge's main branch of 2026-07-31 (061468b78), that has
the fields of TransformerConfig; the model's own are those of its builder."""


def _flatten_model(document: Document, data: dict[str, Any]) -> list[str]:
    """Move the fields of a nested model section to where older versions have them, in place.

    Returns:
        The names of the fields that were moved.

    Raises:
        InputError: the nested section is not a mapping.
    """
    model = data.get("model")
    if not isinstance(model, dict) or TRANSFORMER not in model:
        return []
    inner = model.pop(TRANSFORMER)
    if not isinstance(inner, dict):
        raise InputError(
            f"{document.where('model', TRANSFORMER)}: model.{TRANSFORMER} must be a section with "
            f"keys, not {shown(inner)}"
        )
    # The builder's userbuffers settings are beside it, and null there is no value.
    model.update({key: value for key, value in inner.items() if model.get(key) is None})
    return [key for key in inner if ("model", key) not in document.lines]


def _unnested(override: Override) -> Override:
    """An override of ``model.transformer.KEY`` as one of ``model.KEY``."""
    prefix = f"{TRANSFORMER}."
    if override.section == "model" and (override.key or "").startswith(prefix):
        return replace(override, key=(override.key or "").removeprefix(prefix))
    return override


def _overridden(overrides: Iterable[Override]) -> Iterator[tuple[str, str]]:
    """Each dotted key that an override sets, with two parts at most, and that override."""
    for override in overrides:
        if override.key is not None:
            yield f"{override.section}.{override.key.partition('.')[0]}", override.text
            continue
        yield override.section, override.text
        if isinstance(override.value, dict):
            yield from ((f"{override.section}.{key}", override.text) for key in override.value)


def _is_default(section: str, key: str, value: Any, stacks: tuple[Stack, ...]) -> bool:
    """Whether this is the value that a field has where nobody set it."""
    stack = stacks[-1] if stacks else None
    known = section_fields(section, stack).get(key)
    return known is not None and known.default == value


def _check_sections(document: Document, data: dict[str, Any]) -> None:
    for section in data:
        if section in sections():
            continue
        homes = [s for s in (*KNOB_SECTIONS, "train") if section in section_fields(s)]
        if homes:
            raise InputError(
                f"{document.where(section)}: {section} is at the top level; "
                f"did you mean {homes[0]}.{section}?"
            )
        near = nearest(str(section), sections(), cutoff=0.75)
        if near is not None and near not in data:
            raise InputError(
                f"{document.where(section)}: unknown section {section!r}; did you mean {near}?"
            )
    if not any(section in data for section in ("model", "ddp", "comm_overlap")):
        raise InputError(
            f"{document.path}: contains none of the sections model, ddp and comm_overlap; "
            "is it a run configuration?"
        )


def _check_sizes(
    values: dict[str, dict[str, Any] | None], where: Mapping[str, str], path: str
) -> None:
    for section, names in _SIZES.items():
        for name in names:
            value = (values.get(section) or {}).get(name)
            least = 0 if name in _MAY_BE_ZERO else 1
            if value is not None and value < least:
                raise InputError(
                    f"{where.get(f'{section}.{name}', path)}: {section}.{name} must be "
                    f"{least} or more, not {value}"
                )
            if value is not None and value > LARGEST:
                raise InputError(
                    f"{where.get(f'{section}.{name}', path)}: {section}.{name} must be "
                    f"{LARGEST} or less, not {value}"
                )
    _check_work(values.get("model") or {}, where, path)
    for section, other in (("ddp", None), ("comm_overlap", AUTO)):
        size = (values.get(section) or {}).get("bucket_size")
        if size not in (None, other) and not is_bucket_size(size):
            raise InputError(
                f"{where.get(f'{section}.bucket_size', path)}: {section}.bucket_size must be "
                f"{LEAST_BUCKET_SIZE} or more parameters, {f'{other} ' if other else ''}or null, "
                f"not {shown(size)}"
            )
    comm = values.get("comm_overlap")
    if comm is None:
        return
    if not isinstance(comm.get("tp_comm_overlap"), bool):
        raise InputError(
            f"{where.get('comm_overlap', path)}: comm_overlap.tp_comm_overlap is required; add "
            "comm_overlap.tp_comm_overlap=true or false"
        )


def _check_work(model: Mapping[str, Any], where: Mapping[str, str], path: str) -> None:
    for names, most in _COUNTED.items():
        sizes = {f"model.{name}": size for name in names if (size := model.get(name))}
        product = prod(sizes.values())
        if product > most:
            place = where.get(max(sizes, key=lambda name: sizes[name]), path)
            raise InputError(f"{place}: {' x '.join(sizes)} must be {most} or less, not {product}")


def _plain(value: Any) -> Any:
    """A value without `_target_` wrappers: a name is read, never imported or called."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    target = value.get("_target_")
    if isinstance(target, str):
        if value.get("_call_") is False:
            return target
        if "_args_" in value:
            name = value.get("_name_")
            return name if isinstance(name, str) else _enum_name(target, value["_args_"])
    return {
        # A userbuffers class's name is kept, since it fills in the class's defaults.
        k: _plain_userbuffers(v) if k == "tp_comm_overlap_cfg" else _plain(v)
        for k, v in value.items()
        if k not in ("_target_", "_call_", "_args_", "_builder_")
    }


def _plain_override(override: Override) -> Override:
    # What is kept of a wrapper depends on its key.
    key = (override.key or override.section).rpartition(".")[2]
    return replace(override, value=_plain({key: override.value})[key])


def _plain_userbuffers(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("_call_") is False or "_args_" in value:
        return _plain(value)
    return {k: _plain_userbuffers(v) for k, v in value.items()}


def _enum_name(target: str, args: Any) -> Any:
    """For a CUDA-graph scope the member's name, which rules read; otherwise the enum's value."""
    value = args[0] if isinstance(args, list) and len(args) == 1 else args
    numbers = _GRAPH_SCOPES.get(target.rpartition(".")[2])
    if numbers is not None and isinstance(value, int):
        return next((scope for scope, number in numbers.items() if number == value), value)
    return value


_GRAPH_SCOPES: dict[str, dict[str, int]] = {
    "CudaGraphScope": core_table().cuda_graph_scopes,
    # megatron-core 0.18.2 and later; the same number means another scope than before.
    "CudaGraphModule": {
        "attn": 1,
        "mlp": 2,
        "moe": 3,
        "moe_router": 4,
        "moe_preprocess": 5,
        "mamba": 6,
    },
}
"""Members of the enums of CUDA-graph scopes (megatron/core/transformer/enums.py) by class."""


def build_run(settings: Settings) -> Run:
    """A new run with these settings; changing it changes no other.

    Raises:
        InputError: an unknown mixed-precision recipe or userbuffers preset, or contradicting values
            of fp8_param and fp8_param_gather.
    """
    values = settings.values
    train = {name: known.default for name, known in section_fields("train").items()}
    stack = settings.stacks[-1] if settings.stacks else None
    model = _section("model", values, stack)
    tokenizer_vocab = (values.get("tokenizer") or {}).get("vocab_size")
    if model.vocab_size is None and isinstance(tokenizer_vocab, int):
        # Megatron-Bridge does the same when it builds the model.
        model.vocab_size, model.should_pad_vocab = tokenizer_vocab, True
    return Run(
        model=model,
        optimizer=_section("optimizer", values, stack),
        ddp=_section("ddp", values, stack),
        train=SimpleNamespace(**(train | (values.get("train") or {}))),
        mixed_precision=_mixed_precision(settings),
        comm_overlap=_comm_overlap(settings),
        dist=_section("dist", values, stack),
        env_vars=values.get("env_vars"),
    )


def _section(
    section: str, values: Mapping[str, dict[str, Any] | None], stack: Stack | None
) -> SimpleNamespace:
    fields = section_fields(section, stack)
    defaults = {name: known.default for name, known in fields.items()}
    given = values.get(section) or {}
    # null is None where Megatron-Core allows it, and "not set" for a plain number or switch.
    plain = {k for k, known in fields.items() if known.kind in KINDS}
    content = {k: v for k, v in given.items() if v is not None or k not in plain}
    return SimpleNamespace(**(defaults | content))


def _mixed_precision(settings: Settings) -> MixedPrecisionConfig | None:
    content = settings.values.get("mixed_precision")
    if content is None:
        return None
    fields = {f.name for f in dataclasses.fields(MixedPrecisionConfig)}
    given = {k: v for k, v in content.items() if k in fields}
    place = settings.where.get("mixed_precision", settings.source)
    try:
        # An override comes after what it overrides, so fp8_param and its twin take its value.
        late = {k for k in given if f"mixed_precision.{k}" in settings.overridden}
        early = {k: v for k, v in given.items() if k not in late}
        if BY_NAME in content:
            early = mixed_precision_recipe(content[BY_NAME]) | early
        config = MixedPrecisionConfig(**early)
        for name in late:
            setattr(config, name, given[name])
        return config
    except OverlapConfigError as error:
        raise InputError(f"{place}: {error}") from None


def _comm_overlap(settings: Settings) -> CommOverlapConfig | None:
    content = settings.values.get("comm_overlap")
    if content is None:
        return None
    fields = {f.name for f in dataclasses.fields(CommOverlapConfig)}
    given = {k: v for k, v in content.items() if k in fields}
    key = "comm_overlap.tp_comm_overlap_cfg"
    preset = given.get("tp_comm_overlap_cfg")
    if isinstance(preset, str):
        name = preset.rpartition(".")[2]
        if name not in PRESETS:
            near = nearest(name, PRESETS)
            hint = f"did you mean {near}?" if near else "give a preset, or a mapping of GEMMs"
            place = settings.where.get(key, settings.source)
            raise InputError(f"{place}: {key}: unknown preset {shown(preset)}; {hint}")
        given["tp_comm_overlap_cfg"] = PRESETS[name]
    elif preset is not None and not isinstance(preset, dict):
        place = settings.where.get(key, settings.source)
        raise InputError(
            f"{place}: {key} must be a preset's name, a mapping of GEMMs or null, "
            f"not {shown(preset)}"
        )
    return CommOverlapConfig(**given)
