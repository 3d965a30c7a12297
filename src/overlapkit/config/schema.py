"""The keys of a run configuration, with their kinds and defaults.

Megatron-Core's fields and defaults come from a table made by `scripts/generate_tables.py`, so that
reading a configuration needs neither torch nor Megatron-Core. A test compares the table with the
installed Megatron-Core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.megatron_lm_rules import MegatronLmRequest
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.versions import Stack
from overlapkit.config.versions import histories, index_of, keys_in, spans
from overlapkit.errors import InputError

_DATA = Path(__file__).with_name("data")

KINDS = {"bool": bool, "int": int, "float": float, "str": str}


class Field(msgspec.Struct, frozen=True):
    """A key's kind ("bool", "int", "float" or "str", with or without "|null", or "other")."""

    kind: str
    default: Any = None


class CoreTable(msgspec.Struct, frozen=True):
    """Fields of Megatron-Core's configuration classes, and of the model providers."""

    source: str
    model: dict[str, Field]
    mla: dict[str, Field]
    provider: dict[str, Field]
    ddp: dict[str, Field]
    optimizer: dict[str, Field]
    cuda_graph_scopes: dict[str, int]


class BridgeKeys(msgspec.Struct, frozen=True):
    """The keys that Megatron-Bridge writes into each section of a run_config.yaml."""

    source: str
    sections: dict[str, list[str]]


def _load(name: str, kind: type[Any]) -> Any:
    return msgspec.json.decode((_DATA / name).read_bytes(), type=kind)


@cache
def core_table() -> CoreTable:
    """The table of Megatron-Core's fields."""
    table: CoreTable = _load("megatron_core_fields.json", CoreTable)
    return table


@cache
def bridge_keys() -> BridgeKeys:
    """The keys known from Megatron-Bridge's own files."""
    keys: BridgeKeys = _load("bridge_keys.json", BridgeKeys)
    return keys


# Kinds of the comm_overlap and train keys, which are not Megatron-Core's.
_COMM_OVERLAP: dict[str, Field] = {
    f.name: Field(
        {
            "tp_comm_overlap": "bool",
            "tp_comm_overlap_cfg": "other",
            "tp_comm_bootstrap_backend": "str|null",
            "wgrad_deferral_limit": "int|null",
            "data_parallel_size": "int|null",
            "bucket_size": "other",
        }.get(f.name, "bool|null")
    )
    for f in dataclasses.fields(CommOverlapConfig)
}
_TRAIN = {
    "micro_batch_size": Field("int|null"),
    "global_batch_size": Field("int|null"),
    "manual_gc": Field("bool", False),
    "manual_gc_interval": Field("int", 0),
    "rampup_batch_size": Field("other"),
    "decrease_batch_size_if_needed": Field("bool", False),
}
_TOKENIZER = {"vocab_size": Field("int|null")}
# Only a Megatron-LM command line has these.
_MEGATRON_LM: dict[str, Field] = {
    f.name: Field(str(f.type).replace(" | None", "|null"), f.default)
    for f in dataclasses.fields(MegatronLmRequest)
}


def _mixed_precision() -> dict[str, Field]:
    fields = {}
    for f in dataclasses.fields(MixedPrecisionConfig):
        kind, _, optional = str(f.type).partition(" | ")
        kind = kind if kind in KINDS else "other"
        fields[f.name] = Field(f"{kind}|null" if optional and kind in KINDS else kind, f.default)
    return fields


@cache
def section_fields(section: str, stack: Stack | None = None) -> Mapping[str, Field]:
    """The typed fields of a section; empty where only the names of its keys are known.

    Args:
        section: its name.
        stack: the versions whose fields and defaults are wanted; None: the fields of every version,
            with the defaults of the newest that has each.
    """
    oldest = _oldest_fields(section)
    if section not in VERSIONED:
        return oldest
    if stack is None:
        newest = {key: history[-1] for key, history in histories(section).items()}
        # The oldest stack's table is of the classes themselves, with what annotations hide.
        later = {k: span for k, span in newest.items() if k not in oldest or span.since > 0}
        return {**oldest, **{k: Field(span.kind, span.default) for k, span in later.items()}}
    index = index_of(stack, section)
    fields = {key: f for key, f in oldest.items() if not _is_gone(section, key, index)}
    for key, span in keys_in(section, index).items():
        # The oldest stack's table is of the classes themselves, with what annotations hide.
        if key not in oldest or span.since > 0:
            fields[key] = Field(span.kind, span.default)
    return fields


def _is_gone(section: str, key: str, index: int) -> bool:
    """Whether a key that the oldest stack has no longer exists in the stack of that index."""
    history = spans(section, key)
    return bool(history) and all(each.until is not None and each.until <= index for each in history)


VERSIONED = ("model", "ddp", "optimizer", "dist", "validation", "rerun_state_machine")
"""Sections whose fields differ between versions in a way that matters here."""


def _oldest_fields(section: str) -> Mapping[str, Field]:
    table = core_table()
    return {
        "model": {**table.mla, **table.model, **table.provider},
        "ddp": table.ddp,
        "optimizer": table.optimizer,
        "mixed_precision": _mixed_precision(),
        "comm_overlap": _COMM_OVERLAP,
        "train": _TRAIN,
        "tokenizer": _TOKENIZER,
        "megatron_lm": _MEGATRON_LM,
    }.get(section, {})


def sections() -> frozenset[str]:
    """Every known section name."""
    return frozenset(bridge_keys().sections) | {"megatron_lm", "validation", "env_vars"}


@cache
def known_keys(section: str) -> frozenset[str]:
    """Every known key of a section, typed or not."""
    return (
        frozenset(section_fields(section))
        | frozenset(bridge_keys().sections.get(section, ()))
        | frozenset(histories(section))
    )


OWN_NAMES = frozenset({"env_vars"})
"""Sections whose keys are names of the user's own, so that none of them is unknown."""

KNOB_SECTIONS = ("comm_overlap", "ddp", "model", "optimizer", "mixed_precision")
"""The sections whose keys determine the overlap, in the order of search for a misplaced key."""

OVERLAP_KNOBS = frozenset(_COMM_OVERLAP) | {
    "use_distributed_optimizer",
    "grad_reduce_in_fp32",
    "fp8_param_gather",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "sequence_parallel",
    "micro_batch_size",
    "global_batch_size",
}
"""Keys that would silently change the answer if they were misspelt or misplaced."""


_READ_BY_RULES = (OVERLAP_KNOBS - frozenset({"bucket_size"})) | {
    "expert_tensor_parallel_size",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_moe_experts",
    "vocab_size",
    "seq_length",
    "tp_comm_overlap",
    "overlap_p2p_comm_warmup_flush",
    "gradient_accumulation_fusion",
    # plan's alone: how many experts a token is sent to.
    "moe_router_topk",
    "moe_token_dispatcher_type",
    "moe_flex_dispatcher_backend",
    "moe_shared_expert_overlap",
    "moe_shared_expert_intermediate_size",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
    "cp_comm_type",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16",
    "mtp_num_layers",
    "position_embedding_type",
    "moe_router_pre_softmax",
    "variable_seq_lengths",
    "distribute_saved_activations",
    "add_bias_linear",
    "add_qkv_bias",
    "bf16",
    "fp16",
}


DECIDING_KEYS = (
    OVERLAP_KNOBS
    | _READ_BY_RULES
    | {
        "cuda_graph_impl",
        "cuda_graph_modules",
        "cuda_graph_scope",
        "ep_overlap_early_attn_memory_release",
        "fp4_param_gather",
        "nccl_ub",
        "num_buckets",
        "num_distributed_optimizer_instances",
        "overlap_dispatch_backward_with_experts_wgrad",
        "reuse_grad_buf_for_mxfp8_param_ag",
        "use_layer_wise_distributed_optimizer",
        "use_megatron_fsdp",
        "use_torch_fsdp2",
    }
)
"""Keys that an answer depends on: a typing error in one of them would change it silently."""

_NAME_LISTS = {"recompute_modules": False, "cp_comm_type": True}
"""Keys whose value is a list of names, and whether a single name can take its place."""


def shown(value: Any) -> str:
    """A value for messages: on one line, and shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_kind(section: str, key: str, value: Any, where: str) -> Any:
    """`value`, if it is of the key's kind; an int is accepted for a float.

    Raises:
        InputError: with the place, the key, the expected kind and the value.
    """
    expected = section_fields(section).get(key)
    # Megatron-Bridge writes null for fields that Megatron-Core declares without None, and its
    # model providers use lists for some that no rule reads (such as rotary_base).
    if expected is None or value is None or (section == "model" and key not in _READ_BY_RULES):
        return value
    if key in _NAME_LISTS:
        single = _NAME_LISTS[key]
        names = [value] if single and isinstance(value, str) else value
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            wanted = "a name, a list of names" if single else "a list of names"
            raise InputError(
                f"{where}: {section}.{key} must be {wanted} or null, not {shown(value)}"
            )
        return value
    kind, _, optional = expected.kind.partition("|")
    if kind not in KINDS or (kind == "float" and type(value) is int):
        return value
    # In Python bool is an int; here 1 is not accepted for true.
    if not isinstance(value, KINDS[kind]) or (kind == "int" and isinstance(value, bool)):
        allowed = {"bool": "true or false", "int": "a whole number", "float": "a number"}
        wanted = allowed.get(kind, "a string") + (" or null" if optional else "")
        raise InputError(f"{where}: {section}.{key} must be {wanted}, not {shown(value)}")
    return value
